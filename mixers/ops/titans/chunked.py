"""Titans' memory over the tokens of a chunk at once: only the weights go from one chunk to the next.
The coefficients of many whole chunks are computed at once.

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

from ..chunks import ends_chunk
from ..inner_model import GELU, Layers, Source, converted, moved, read, writes
from . import TitansState
from .reference import settled, start

TOGETHER = 32
"""Chunks whose coefficients are computed at once: each chunk has as many as its tokens squared."""


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
    # [batch, heads, time, ...]
    inputs = [x.to(dtype).transpose(1, 2) for x in (queries, keys, values, step_sizes, log_decay, log_momentum)]
    if isinstance(state.position, Tensor):  # one token, which does not end its chunk: see `ends_chunk`
        output, state = _open_chunk(inputs, state, chunk_size)
        return output.transpose(1, 2), state
    outputs, first, time = [], 0, values.shape[1]
    while first < time:
        within = state.position % chunk_size
        if within == 0 and time - first >= chunk_size:
            run, last = _whole_chunks, first + min(TOGETHER, (time - first) // chunk_size) * chunk_size
        else:
            run, last = _open_chunk, min(time, first + chunk_size - within)
        output, state = run([x[:, :, first:last] for x in inputs], state, chunk_size)
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


def _whole_chunks(inputs: list[Tensor], state: TitansState, chunk_size: int) -> tuple[Tensor, TitansState]:
    """Whole chunks, one after the other but for their coefficients, and the state after them."""
    q, k, v, *gates = (x.unflatten(2, (-1, chunk_size)).movedim(2, 0).contiguous() for x in inputs)
    c = coefficients(*gates)
    outputs = []
    for query, key, value, own, end in zip(q, k, v, zip(*c), zip(*_ends(c))):
        of_chunk = Coefficients(*own), Coefficients(*end)
        output, state = _read_and_write(query, key, value, *of_chunk, state, chunk_size)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state


def _open_chunk(inputs: list[Tensor], state: TitansState, chunk_size: int) -> tuple[Tensor, TitansState]:
    """Tokens of one chunk, from anywhere in it up to its end at most, and the state after them."""
    q, k, v, *gates = inputs
    c = coefficients(*gates)
    return _read_and_write(q, k, v, c, _ends(c), state, chunk_size)


def _read_and_write(
    q: Tensor, k: Tensor, v: Tensor, c: Coefficients, end: Coefficients, state: TitansState, chunk_size: int
) -> tuple[Tensor, TitansState]:
    """What tokens of one chunk read, and the state after them."""
    written = writes(state.anchor, k, GELU, lambda output: 2 * (output - v))
    sources = Source(state.memory, c.decay), Source(state.momentum, c.carried)
    output = read(q, sources, c.memory_steps, written, GELU)
    ends = Source(state.memory, end.decay), Source(state.momentum, end.carried)
    memory = moved(ends, end.memory_steps, written)
    momentum = moved((Source(state.momentum, end.momentum),), end.momentum_steps, written)
    position = state.position + q.shape[2]
    return output, TitansState(memory if ends_chunk(position, chunk_size) else state.anchor, memory, momentum, position)


def _ends(c: Coefficients) -> Coefficients:
    """Of the last token alone, its steps as a column."""
    last = Coefficients(*(x[..., -1:, :] for x in c))
    return last._replace(memory_steps=last.memory_steps.mT, momentum_steps=last.momentum_steps.mT)
