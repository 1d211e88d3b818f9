"""Softmax attention: every token weighs the tokens that it sees."""

from .deltaformer import DeltaFormer
from .moba import MoBA
from .native_sparse_attention import NativeSparseAttention
from .sliding_window_attention import SlidingWindowAttention
from .softmax_attention import SoftmaxAttention

__all__ = ["DeltaFormer", "MoBA", "NativeSparseAttention", "SlidingWindowAttention", "SoftmaxAttention"]
