"""Adapters to FlashAttention 2 (the package flash-attn) and 3 (flash_attn_interface, from its folder `hopper`).

Both align the causal mask to the last key, group heads as we do, and count a window without the token itself. Their
signatures are those of flash-attn 2.3 to 2.8 and of flash_attn_3 as of 2025; no GPU has run these adapters yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import Call
from ..libraries import call_library

DTYPES, FEATURES = (torch.float16, torch.bfloat16), 256
ALIGNMENT = 8  # of head sizes; FlashAttention 3 does not fill them up itself


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if call.dtype not in DTYPES:
        return f"it takes float16 or bfloat16, got {call.dtype}; use autocast or 'sdpa'"
    if call.width > FEATURES:
        return f"it takes heads of at most {FEATURES} features, got {call.width}"
    unknown = [name for name in call.variant.split("+") if name in ("forget", "sinks")]
    return f"it has no {' and no '.join(unknown)}" if unknown else None


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    from flash_attn import flash_attn_func

    return _attend(flash_attn_func, queries, keys, values, window, scale)


def attention_3(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    from flash_attn_interface import flash_attn_func

    return _attend(flash_attn_func, queries, keys, values, window, scale)


def _attend(
    function: Callable[..., Any], queries: Tensor, keys: Tensor, values: Tensor, window: int | None, scale: float
) -> Tensor:
    d_value = values.shape[-1]
    width = -(-max(keys.shape[-1], d_value) // ALIGNMENT) * ALIGNMENT
    queries, keys, values = (
        F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (queries, keys, values)
    )
    window_size = (-1, -1) if window is None else (window - 1, 0)
    y = call_library(function, queries, keys, values, softmax_scale=scale, causal=True, window_size=window_size)
    if isinstance(y, tuple):  # FlashAttention 3 returned the normaliser, too, until July 2025
        y = y[0]
    return y[..., :d_value]
