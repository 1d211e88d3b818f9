"""Memories that the sequence itself trains or writes slot by slot, and product keys."""

from .fwmlp import FwMLP
from .fwpkm import FwPKM
from .gated_kalmanet import GatedKalmaNet
from .lact import LaCT
from .mesa import Mesa
from .pkm import PKM
from .raven import Raven
from .titans import Titans
from .ttt_linear import TTTLinear
from .ttt_mlp import TTTMLP

__all__ = ["PKM", "TTTMLP", "FwMLP", "FwPKM", "GatedKalmaNet", "LaCT", "Mesa", "Raven", "TTTLinear", "Titans"]
