"""Softmax attention: every token weighs the tokens that it sees."""

from .sliding_window_attention import SlidingWindowAttention
from .softmax_attention import SoftmaxAttention

__all__ = ["SlidingWindowAttention", "SoftmaxAttention"]
