"""LaCT a chunk at a time: matrix products over all tokens of a chunk, the gradients in closed form.

A call may begin and end anywhere in a chunk: gradients are sums over tokens, so a state gathers them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import LactState, Weights
from .reference import apply, converted, row_lengths, start, updated


def lact(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    weights: Weights,
    momentum: Tensor | None,
    muon: bool,
    chunk_size: int,
    state: LactState | None,
) -> tuple[Tensor, LactState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    # [batch, heads, time, features]
    q, k, v, steps = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values, step_sizes))
    persistence = None if momentum is None else momentum.to(dtype)
    lengths = row_lengths(weights, dtype)
    state = start(weights, len(k), dtype, momentum is not None) if state is None else converted(state, dtype)
    outputs, first, time = [], 0, k.shape[2]
    while first < time:
        last = min(time, first + chunk_size - state.position % chunk_size)
        piece = slice(first, last)
        outputs.append(apply(state.weights, q[:, :, piece]))
        gradients = _gradients(state.weights, k[:, :, piece], v[:, :, piece], steps[:, :, piece])
        gathered = tuple(old + new for old, new in zip(state.gathered, gradients))
        carried = state.persistence
        if persistence is not None and carried is not None:
            carried = carried + persistence[:, piece].sum(1)
        state = LactState(state.weights, gathered, state.velocity, carried, state.position + last - first)
        if state.position % chunk_size == 0:
            state = updated(state, lengths, muon, chunk_size)
        first = last
    return torch.cat(outputs, dim=2).transpose(1, 2), state


def _gradients(weights: Weights, k: Tensor, v: Tensor, steps: Tensor) -> Weights:
    """`sum_t step_t * d/dW (f(k_t) . v_t)` for the three matrices."""
    gate, down, up = weights
    switch, linear = k @ gate.mT, k @ up.mT
    sigmoid = switch.sigmoid()
    d_hidden = v @ down
    d_switch = d_hidden * linear * sigmoid * (1 + switch * (1 - sigmoid))
    d_linear = d_hidden * switch * sigmoid
    gate_step, down_step, up_step = steps.split(1, dim=-1)
    hidden = F.silu(switch) * linear
    return (d_switch * gate_step).mT @ k, v.mT @ (hidden * down_step), (d_linear * up_step).mT @ k
