"""The definition of Titans' memory: one token after the other, the inner gradient by automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chunks import ends_chunk
from ..inner_model import GELU, Layers, apply, converted, repeated, zeros
from . import TitansState


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
    # [time, batch, heads, 1, features]
    sequences = (queries, keys, values, *(x[..., None] for x in (step_sizes, log_decay, log_momentum)))
    tokens = zip(*(x.to(dtype).transpose(0, 1).unsqueeze(3) for x in sequences))
    state = start(weights, len(values), dtype) if state is None else state
    anchor, memory, momentum = (converted(x, dtype) for x in (state.anchor, state.memory, state.momentum))
    position, outputs = state.position, []
    for q, k, v, step, decay, persistence in tokens:
        surprise = torch.func.grad(_loss)(anchor, k, v)
        momentum = _combined(persistence.exp(), momentum, -step, surprise)
        memory = _combined(decay.exp(), memory, torch.ones_like(step), momentum)
        outputs.append(apply(memory, q, GELU).squeeze(2))
        position += 1
        if position % chunk_size == 0:
            anchor = memory
    return torch.stack(outputs, dim=1), settled(TitansState(anchor, memory, momentum, position), chunk_size)


def start(weights: Layers, batch: int, dtype: torch.dtype) -> TitansState:
    """The state before the first token."""
    memory = repeated(weights, batch, dtype)
    return TitansState(memory, memory, zeros(memory), 0)


def settled(state: TitansState, chunk_size: int) -> TitansState:
    """A state to keep: it holds as many bytes at a chunk's edge, where anchor and memory are the same, as elsewhere."""
    if not ends_chunk(state.position, chunk_size):
        return state
    anchor = tuple(tuple(w.clone() for w in layer) for layer in state.memory)
    return TitansState(anchor, state.memory, state.momentum, state.position)


def _loss(weights: Layers, k: Tensor, v: Tensor) -> Tensor:
    """Each sequence and head has weights of its own, so the gradient of the sum is that of each."""
    return (apply(weights, k, GELU) - v).square().sum()


def _combined(a: Tensor, first: Layers, b: Tensor, second: Layers) -> Layers:
    return tuple(tuple(a * x + b * y for x, y in zip(*layers)) for layers in zip(first, second))
