"""Adapter to flash-linear-attention (the packages fla-core and flash-linear-attention)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs, repeat_heads


def linear_recurrence(
    inputs: Inputs, scale: float, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Runs the library's kernel for these arguments, see `kernel`; its chunks have the size that it is tuned for.

    Raises `ValueError` for float64 and for grouped queries, for which it has none.
    """
    if inputs.values.dtype == torch.float64:
        raise ValueError("backend 'fla' of recurrence works in float32 at most, got float64; use 'chunked'")
    if inputs.queries.shape[2] > inputs.heads:
        raise ValueError(
            f"backend 'fla' of recurrence has no kernel for several queries per memory, got {inputs.queries.shape[2]} "
            f"query heads for {inputs.heads} memories; use 'chunked'"
        )
    module, name, arguments = kernel(inputs)
    function = getattr(importlib.import_module(module), name)
    output, state = function(
        **arguments,
        scale=scale,
        initial_state=None if state is None else state.float().contiguous(),
        output_final_state=return_state,
    )
    return output, state


def kernel(inputs: Inputs) -> tuple[str, str, dict[str, Any]]:
    """The library's module, its function, and the arguments that only this function takes or names its own way."""
    dtype, heads = inputs.values.dtype, inputs.heads
    q, k, v = (repeat_heads(x.to(dtype), heads).contiguous() for x in inputs[:3])
    given = {"q": q, "k": k, "v": v}
    decay = None if inputs.log_decay is None else inputs.log_decay.float().contiguous()
    per_channel = decay is not None and decay.ndim == 4
    if inputs.erase is not None:
        a, b = inputs.erase
        given |= {"a": a.to(dtype).contiguous(), "b": -k if b is None else b.to(dtype).contiguous()}
        if decay is None:
            return "fla.ops.generalized_delta_rule", "chunk_iplr_delta_rule", given
        return "fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule", given | {"gk": _channels(decay, k)}
    if inputs.beta is not None:
        given["beta"] = inputs.beta.to(dtype).contiguous()
        if decay is None:
            return "fla.ops.delta_rule", "chunk_delta_rule", given
        if per_channel:
            return "fla.ops.kda", "chunk_kda", given | {"g": decay}
        return "fla.ops.gated_delta_rule", "chunk_gated_delta_rule", given | {"g": decay}
    if inputs.bonus is not None:
        decay = torch.zeros_like(k, dtype=torch.float32) if decay is None else _channels(decay, k)
        return "fla.ops.rwkv6", "chunk_rwkv6", {"r": q, "k": k, "v": v, "w": decay, "u": inputs.bonus.to(dtype)}
    if decay is None:
        return "fla.ops.linear_attn", "chunk_linear_attn", given | {"normalize": False}
    if per_channel:
        return "fla.ops.gla", "chunk_gla", given | {"g": decay}
    return "fla.ops.simple_gla", "chunk_simple_gla", given | {"g": decay}


def _channels(log_decay: Tensor, keys: Tensor) -> Tensor:
    """A decay per head as one per key channel."""
    return log_decay if log_decay.ndim == 4 else log_decay[..., None].expand(keys.shape).contiguous()
