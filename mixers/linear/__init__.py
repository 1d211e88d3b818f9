"""Attention without softmax: products of features with a state of constant size."""

from .based import Based
from .gla import GatedLinearAttention
from .hgrn2 import HGRN2
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .rebased import ReBased
from .retention import Retention

__all__ = [
    "HGRN2",
    "Based",
    "GatedLinearAttention",
    "LightningAttention",
    "LinearAttention",
    "ReBased",
    "Retention",
]
