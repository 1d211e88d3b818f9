"""Attention without softmax: products of features with a state of constant size."""

from .linear_attention import LinearAttention

__all__ = ["LinearAttention"]
