"""Memories that the sequence itself trains, and product keys."""

from .fwmlp import FwMLP
from .fwpkm import FwPKM
from .pkm import PKM
from .ttt_linear import TTTLinear

__all__ = ["PKM", "FwMLP", "FwPKM", "TTTLinear"]
