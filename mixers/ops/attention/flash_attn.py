"""Adapter to the package flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    if queries.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"backend 'flash_attn' takes float16 or bfloat16, got {queries.dtype}; use autocast or 'sdpa'")
    if sinks is not None or log_forget is not None:
        raise RuntimeError("backend 'flash_attn' of attention cannot run: it has neither sinks nor log_forget")
    from flash_attn import flash_attn_func

    d_head, d_value = keys.shape[-1], values.shape[-1]
    if d_head != d_value:  # its heads have one size
        queries, keys, values = (F.pad(x, (0, max(d_head, d_value) - x.shape[-1])) for x in (queries, keys, values))
    # flash-attn aligns the causal mask to the last key, groups heads as we do, and counts a window without the token
    window_size = (-1, -1) if window is None else (window - 1, 0)
    y = flash_attn_func(queries, keys, values, softmax_scale=scale, causal=True, window_size=window_size)
    return y[..., :d_value]
