"""The recurrence, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Inputs


def linear_recurrence(
    inputs: Inputs, scale: float, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """`step` for every token."""
    given = inputs.per_memory()
    batch, time, heads, d_k = given.keys.shape
    memory = given.keys.new_zeros(batch, heads, d_k, given.values.shape[3]) if state is None else state.to(given.keys)
    outputs = []
    for t in range(time):
        read, memory = step(given, t, memory)
        outputs.append(read * scale)
    return torch.stack(outputs, dim=1), memory if return_state else None


def step(given: Inputs, t: int, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Token t of `Inputs.per_memory`: what it reads `[batch, q_heads, d_v]`, unscaled, and the memory after it.

    memory `[batch, heads, d_k, d_v]` is the one before the token.
    """
    query, key, value, before = given.queries[:, t], given.keys[:, t], given.values[:, t], memory
    if given.log_decay is not None:
        decay = given.log_decay[:, t].exp()
        memory = memory * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
    if given.beta is not None:
        value = given.beta[:, t, :, None] * (value - torch.einsum("bhk,bhkv->bhv", key, memory))
    if given.erase is not None:
        a, b = given.erase
        held = torch.einsum("bhk,bhkv->bhv", a[:, t], before)
        if b is None:
            value = value - held
        else:
            memory = memory + torch.einsum("bhk,bhv->bhkv", b[:, t], held)
    memory = memory + torch.einsum("bhk,bhv->bhkv", key, value)
    readable = memory
    if given.bonus is not None:
        readable = before + torch.einsum("bhk,bhv->bhkv", given.bonus * key, value)
    return torch.einsum("bhgk,bhkv->bhgv", query, readable).flatten(1, 2), memory
