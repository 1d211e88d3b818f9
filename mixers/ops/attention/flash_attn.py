"""Adapter to the package flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    if queries.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"backend 'flash_attn' takes float16 or bfloat16, got {queries.dtype}; use autocast or 'sdpa'")
    from flash_attn import flash_attn_func

    # flash-attn aligns the causal mask to the last key, groups heads as we do, and counts a window without the token
    window_size = (-1, -1) if window is None else (window - 1, 0)
    return flash_attn_func(queries, keys, values, causal=True, window_size=window_size)
