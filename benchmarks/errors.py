"""What can go wrong with a case, beyond Python's own exceptions."""


class NotFiniteError(ArithmeticError):
    """A loss, a gradient or a logit became NaN or infinite."""


class RankError(Exception):
    """What ended one of the processes of a case. status: that the case ends with, see `Status`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status
