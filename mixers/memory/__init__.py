"""Memories that the sequence itself trains or writes slot by slot, and product keys."""

from .fwmlp import FwMLP
from .fwpkm import FwPKM
from .pkm import PKM
from .raven import Raven
from .ttt_linear import TTTLinear

__all__ = ["PKM", "FwMLP", "FwPKM", "Raven", "TTTLinear"]
