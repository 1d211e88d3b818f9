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
    chunk_size: int,
    state: tuple[Tensor, Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
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
