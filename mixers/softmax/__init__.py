"""Softmax attention and its kin: every token weighs the tokens that it sees."""

from .differential_attention import DifferentialAttention
from .forgetting_attention import ForgettingAttention
from .gated_attention import GatedAttention
from .multi_head_latent_attention import MultiHeadLatentAttention
from .path_attention import PathAttention
from .sliding_window_attention import SlidingWindowAttention
from .softmax_attention import SoftmaxAttention
from .stick_breaking_attention import StickBreakingAttention

__all__ = [
    "DifferentialAttention",
    "ForgettingAttention",
    "GatedAttention",
    "MultiHeadLatentAttention",
    "PathAttention",
    "SlidingWindowAttention",
    "SoftmaxAttention",
    "StickBreakingAttention",
]
