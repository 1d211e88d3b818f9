"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    precision = torch.promote_types(values.dtype, torch.float32)
    q, k, v = (x.to(precision) for x in (queries, keys, values))
    memory = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[3]) if state is None else state.to(precision)
    outputs = []
    for t in range(k.shape[1]):
        memory = memory + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhkv,bhk->bhv", memory, q[:, t]))
    return torch.stack(outputs, dim=1), memory if return_state else None
