"""What can go wrong with a case, or with a run's folder, beyond Python's own exceptions."""


class NotFiniteError(ArithmeticError):
    """A loss, a gradient, a logit or an output became NaN or infinite."""


class RankError(Exception):
    """What ended one of the processes of a case. status: that the case ends with, see `Status`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class RunError(ValueError):
    """A run folder that cannot be read, or not be written to; the message says what to do."""


class StorageError(OSError, RunError):
    """The file system does not take what is to be written: it is full, or not to be written to."""
