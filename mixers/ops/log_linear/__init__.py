"""Log-linear attention: a decaying memory per level of a Fenwick tree, so that recent tokens are kept apart."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Call, Op
from ..libraries import needs_fla
from .fla import CAPPED, CARRIED, refuses

OP = Op(
    __name__,
    Backend("chunked", "chunked:log_linear_attention"),
    Backend(
        "fla",
        "fla:log_linear_attention",
        needs_fla,
        trust="proven",
        refuses=refuses,
        libraries=("fla-core", "flash-linear-attention", "triton"),
    ),
    Backend("reference", "reference:log_linear_attention", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "log_linear_attention", "memories_held"]


def memories_held(position: int, levels: int) -> int:
    """Memories in the state after `position` tokens: one per binary digit of it, `levels - 1` at most."""
    return min(position.bit_length(), levels - 1)


def log_linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    level_scales: Tensor,
    *,
    position: int = 0,
    scale: float | None = None,
    chunk_size: int = 64,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Read the past in O(log time) pieces, each with a weight of its own (Guo et al. 2025, arXiv 2506.04761).

    Token t is level 0 of itself. For every binary digit b of t that is set, level b + 1 holds the 2**b tokens whose
    numbers agree with t above that digit and have a 0 in it: the longer ago, the more tokens share a memory. With
    `D` the product of the decays of the tokens after j up to t, and l(t, j) the level of j seen from t,

        o_t = scale * sum_{j <= t} level_scales_t[l(t, j)] * D * (k_j . q_t) * v_j

    Levels at or above the last of `level_scales` share it and one memory, so that a text may have any length: from
    `2 ** (levels - 2)` tokens on, the state grows no more.

    queries, keys `[batch, time, k_heads, d_k]`; values `[batch, time, heads, d_v]`, heads a multiple of k_heads.
    log_decay `[batch, time, heads]`, finite, at most 0. level_scales `[batch, time, heads, levels]`, 2 levels or more.
    position: of the first token. scale: of the queries; None means `d_k ** -0.5`. chunk_size: tokens computed at once,
    rounded down to a power of 2; changes the speed only.
    state `[batch, memories_held(position, levels), heads, d_k, d_v]`, None at position 0: memory b is that of digit b.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, log_decay, level_scales, position, chunk_size)
    batch, _, heads, levels = level_scales.shape
    precision = torch.promote_types(values.dtype, torch.float32)
    expected = [batch, memories_held(position, levels), heads, keys.shape[3], values.shape[3]]
    if state is None:
        state = values.new_zeros(batch, 0, *expected[2:], dtype=precision)
    if list(state.shape) != expected:
        raise ValueError(f"the state at position {position} must be of shape {expected}, got {list(state.shape)}")
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    inputs = (queries, keys, values, log_decay, level_scales)
    carried = position > 0 or return_state
    variant = CARRIED if carried else CAPPED if values.shape[1] > 1 << (levels - 1) else ""
    width = max(keys.shape[3], values.shape[3])
    call = Call.of(values, *inputs, state, width=width, tokens=values.shape[1], variant=variant)
    run = OP.select(backend, values.device, call)
    with autocast(values.device.type, enabled=False):
        y, state = run(*inputs, position, scale, 1 << (chunk_size.bit_length() - 1), state)
    return y.to(values.dtype), state if return_state else None


def _check(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    level_scales: Tensor,
    position: int,
    chunk_size: int,
) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, k_heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, k_heads, _ = keys.shape
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:2] != keys.shape[:2] or 0 in values.shape or values.shape[2] % k_heads:
        expected = f"[batch = {batch}, time = {time}, a multiple of k_heads = {k_heads}, d_v]"
        raise ValueError(f"values must be {expected}, got {list(values.shape)}")
    if log_decay.shape != values.shape[:3]:
        raise ValueError(f"log_decay must be {list(values.shape[:3])}, got {list(log_decay.shape)}")
    if level_scales.ndim != 4 or level_scales.shape[:3] != values.shape[:3] or level_scales.shape[3] < 2:
        expected = f"{list(values.shape[:3])} + [levels >= 2]"
        raise ValueError(f"level_scales must be {expected}, got {list(level_scales.shape)}")
    if position < 0 or chunk_size < 1:
        raise ValueError(f"position must be at least 0 and chunk_size at least 1, got {position} and {chunk_size}")
