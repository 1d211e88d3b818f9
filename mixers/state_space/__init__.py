"""State space models and other recurrences and long convolutions."""

from .hyena import Hyena
from .mamba import Mamba
from .min_gru import MinGRU
from .rg_lru import RGLRU
from .s4d import S4D

__all__ = ["RGLRU", "S4D", "Hyena", "Mamba", "MinGRU"]
