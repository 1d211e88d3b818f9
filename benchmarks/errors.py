"""What can go wrong with a case, beyond Python's own exceptions."""


class NotFiniteError(ArithmeticError):
    """A loss, a gradient or a logit became NaN or infinite."""
