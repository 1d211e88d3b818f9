"""The definition, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def slot_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    writes: Tensor,
    log_decay: Tensor,
    scale: float,
    chunk_size: int,
    state: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    queries, keys, values, writes, log_decay = in_precision(queries * scale, keys, values, writes, log_decay)
    state = start(keys, values, writes) if state is None else state
    slot_keys, slot_values = state
    queries = queries.unflatten(2, (keys.shape[2], -1))
    outputs = []
    for t in range(keys.shape[1]):
        decay, write = log_decay[:, t, :, :, None].exp(), writes[:, t, :, :, None]
        slot_keys = decay * slot_keys + write * keys[:, t, :, None]
        slot_values = decay * slot_values + write * values[:, t, :, None]
        weights = torch.einsum("bhmd,bhgd->bhgm", slot_keys, queries[:, t]).softmax(dim=-1)
        outputs.append(torch.einsum("bhgm,bhmd->bhgd", weights, slot_values).flatten(1, 2))
    return torch.stack(outputs, dim=1), (slot_keys, slot_values)


def in_precision(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, writes and log_decay in float32, or in what values have if that is more exact."""
    precision = torch.promote_types(inputs[2].dtype, torch.float32)
    queries, keys, values, writes, log_decay = (x.to(precision) for x in inputs)
    return queries, keys, values, writes, log_decay


def start(keys: Tensor, values: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    """Slots before the first token."""
    batch, _, heads, slots = writes.shape
    return keys.new_zeros(batch, heads, slots, keys.shape[3]), keys.new_zeros(batch, heads, slots, values.shape[3])
