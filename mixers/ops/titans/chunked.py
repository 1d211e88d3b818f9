"""Titans' memory over the tokens of a chunk at once: only the weights go from one chunk to the next.

Unrolled from a chunk's first token, with B_i the product of the decays and m_i that of the momenta up to token i,

    S_i = m_i S_0 + sum_{j <= i} n_ij gradient_j,    n_ij = -step_j * product of the momenta of j+1..i
    M_i = B_i M_0 + f_i S_0 + sum_{j <= i} c_ij gradient_j,
    f_i = sum_{l <= i} B_i / B_l m_l,    c_ij = sum_{j <= l <= i} B_i / B_l n_lj

which is the dual form of `inner_model`. A call may begin and end anywhere in a chunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chunks import ends_chunk, until_edge
from ..inner_model import GELU, Layers, Source, converted, moved, read, writes
from . import TitansState
from .reference import settled, start


class Coefficients(NamedTuple):
    """Of `M_i` and `S_i`, as above: decay B, carried f and momentum m `[..., i, 1]`; steps c and n `[..., i, j]`."""

    decay: Tensor
    carried: Tensor
    momentum: Tensor
    memory_steps: Tensor
    momentum_steps: Tensor


def titans(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    log_decay: Tensor,
    log_momentum: Tensor,
    weights: Layers,
    chunk_size: int,
    state: TitansState | None,
) -> tuple[Tensor, TitansState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    state = start(weights, len(values), dtype) if state is None else state
    anchor, memory, momentum = (converted(part, dtype) for part in (state.anchor, state.memory, state.momentum))
    state = TitansState(anchor, memory, momentum, state.position)
    # [batch, heads, time, features]
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values))
    gates = [x.to(dtype).transpose(1, 2) for x in (step_sizes, log_decay, log_momentum)]
    outputs, first, time = [], 0, q.shape[2]
    while first < time:
        last = min(time, first + until_edge(state.position, chunk_size))
        piece = slice(first, last)
        found = coefficients(*(x[:, :, piece] for x in gates))
        output, state = _chunk(q[:, :, piece], k[:, :, piece], v[:, :, piece], found, state, chunk_size)
        outputs.append(output)
        first = last
    return torch.cat(outputs, dim=2).transpose(1, 2), settled(state, chunk_size)


def coefficients(step_sizes: Tensor, log_decay: Tensor, log_momentum: Tensor) -> Coefficients:
    """From gates `[..., tokens]`."""
    # sums of very large exponents would cost the small ones beside them their digits; this much is nothing either way
    least = 2 * math.log(torch.finfo(log_decay.dtype).eps)
    decay, momentum = (x.clamp_min(least).cumsum(-1) for x in (log_decay, log_momentum))
    later = torch.ones(2 * decay.shape[-1:], dtype=torch.bool, device=decay.device).triu(1)

    def between(x: Tensor) -> Tensor:
        return (x[..., None] - x[..., None, :]).masked_fill(later, -torch.inf).exp()

    left, steps = between(decay), between(momentum) * -step_sizes[..., None, :]
    momentum = momentum.exp()[..., None]
    return Coefficients(decay.exp()[..., None], left @ momentum, momentum, left @ steps, steps)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, c: Coefficients, state: TitansState, chunk_size: int
) -> tuple[Tensor, TitansState]:
    """Tokens of one chunk, from anywhere in it up to its end at most: what they read, and the state after them."""
    written = writes(state.anchor, k, GELU, lambda output: 2 * (output - v))
    sources = Source(state.memory, c.decay), Source(state.momentum, c.carried)
    output = read(q, sources, c.memory_steps, written, GELU)

    def last(x: Tensor) -> Tensor:
        return x[..., -1:, :]

    ends = Source(state.memory, last(c.decay)), Source(state.momentum, last(c.carried))
    memory = moved(ends, last(c.memory_steps).mT, written)
    momentum = moved((Source(state.momentum, last(c.momentum)),), last(c.momentum_steps).mT, written)
    position = state.position + q.shape[2]
    return output, TitansState(memory if ends_chunk(position, chunk_size) else state.anchor, memory, momentum, position)
