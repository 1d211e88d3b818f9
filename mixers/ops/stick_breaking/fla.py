"""Adapter to flash-linear-attention's stick-breaking attention."""

from __future__ import annotations

from torch import Tensor

from ..libraries import call_library


def stick_breaking(
    queries: Tensor, keys: Tensor, values: Tensor, attend_current: bool, remainder: bool, scale: float
) -> Tensor:
    from fla.ops.stickbreaking_attn import parallel_stickbreaking_attn

    y: Tensor
    y, rest = call_library(
        parallel_stickbreaking_attn, queries, keys, values, scale=scale, attend_current=attend_current
    )
    if remainder:
        y = y + rest.unsqueeze(-1) * values.repeat_interleave(queries.shape[2] // keys.shape[2], dim=2)
    return y
