"""Adapter to flash-linear-attention (the packages fla-core and flash-linear-attention)."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Its chunks have the size that its kernels are tuned for. Sums in float32, so float64 is refused."""
    if values.dtype == torch.float64:
        raise ValueError("backend 'fla' of linear attention works in float32 at most, got float64; use 'chunked'")
    from fla.ops.linear_attn import chunk_linear_attn

    q, k, v = (x.to(values.dtype).contiguous() for x in (queries, keys, values))
    start = None if state is None else state.contiguous()
    # our op divides by the normaliser itself, so that it is summed in float32 and continues with the state
    return chunk_linear_attn(q, k, v, 1.0, start, return_state, normalize=False)
