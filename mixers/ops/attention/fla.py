"""Adapter to flash-linear-attention's softmax attention, whose kernel knows windows, sinks and forgetting."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Call
from ..libraries import call_library

LIBRARIES = ("fla-core", "flash-linear-attention", "triton")
FEATURES = 256  # of a head, at most


def refuses(call: Call, features: int = FEATURES) -> str | None:
    """For `Backend.refuses`, of this op and of others whose kernels are flash-linear-attention's."""
    if call.dtype == torch.float64:
        return "it works in float32 at most, got torch.float64"
    if call.width > features:
        return f"it takes heads of at most {features} features, got {call.width}"
    return "it has no cache: queries and keys must be of the same tokens" if "cached" in call.variant else None


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    from fla.ops.attn import parallel_attn

    y: Tensor = call_library(
        parallel_attn,
        queries,
        keys,
        values,
        g=None if log_forget is None else log_forget.float(),
        scale=scale,
        window_size=window,
        sink_bias=None if sinks is None else sinks.float(),
    )
    return y
