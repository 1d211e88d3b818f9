"""Softmax attention and its kin: every token weighs the tokens that it sees."""

from .deltaformer import DeltaFormer
from .differential_attention import DifferentialAttention
from .forgetting_attention import ForgettingAttention
from .gated_attention import GatedAttention
from .moba import MoBA
from .multi_head_latent_attention import MultiHeadLatentAttention
from .native_sparse_attention import NativeSparseAttention
from .path_attention import PathAttention
from .sliding_window_attention import SlidingWindowAttention
from .softmax_attention import SoftmaxAttention
from .stick_breaking_attention import StickBreakingAttention

__all__ = [
    "DeltaFormer",
    "DifferentialAttention",
    "ForgettingAttention",
    "GatedAttention",
    "MoBA",
    "MultiHeadLatentAttention",
    "NativeSparseAttention",
    "PathAttention",
    "SlidingWindowAttention",
    "SoftmaxAttention",
    "StickBreakingAttention",
]
