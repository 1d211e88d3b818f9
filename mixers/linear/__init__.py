"""Attention without softmax over tokens: products of features, with a state of constant or nearly constant size."""

from .gated_slot_attention import GatedSlotAttention
from .linear_attention import LinearAttention
from .log_linear_attention import LogLinearAttention
from .mixture_of_memories import MixtureOfMemories

__all__ = ["GatedSlotAttention", "LinearAttention", "LogLinearAttention", "MixtureOfMemories"]
