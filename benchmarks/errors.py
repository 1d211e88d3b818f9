"""What can go wrong with a case, beyond Python's own exceptions."""


class NotFiniteError(ArithmeticError):
    """A loss, a gradient, a logit or an output became NaN or infinite."""
