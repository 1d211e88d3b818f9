"""State space models and other recurrences and long convolutions."""

from .mamba2 import Mamba2
from .mamba3 import Mamba3

__all__ = ["Mamba2", "Mamba3"]
