"""Mixers with a delta-rule memory: a matrix per head that replaces what a key held instead of adding to it."""

from .comba import Comba
from .deltanet import DeltaNet
from .gated_deltanet import GatedDeltaNet
from .gated_deltanet_2 import GatedDeltaNet2
from .gated_deltaproduct import GatedDeltaProduct
from .kimi_delta_attention import KimiDeltaAttention
from .preconditioned_deltanet import PreconditionedDeltaNet

__all__ = [
    "Comba",
    "DeltaNet",
    "GatedDeltaNet",
    "GatedDeltaNet2",
    "GatedDeltaProduct",
    "KimiDeltaAttention",
    "PreconditionedDeltaNet",
]
