"""Attention without softmax over tokens: products of features, with a state of constant or nearly constant size."""

from .based import Based
from .gated_slot_attention import GatedSlotAttention
from .gla import GatedLinearAttention
from .hgrn2 import HGRN2
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .log_linear_attention import LogLinearAttention
from .mixture_of_memories import MixtureOfMemories
from .rebased import ReBased
from .retention import Retention

__all__ = [
    "HGRN2",
    "Based",
    "GatedLinearAttention",
    "GatedSlotAttention",
    "LightningAttention",
    "LinearAttention",
    "LogLinearAttention",
    "MixtureOfMemories",
    "ReBased",
    "Retention",
]
