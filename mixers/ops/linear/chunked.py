"""Chunks in parallel: a masked product within each, and before it a prefix sum of what earlier chunks wrote."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    time = keys.shape[1]
    size = min(chunk_size, time)
    n_chunks = -(-time // size)
    precision = torch.promote_types(values.dtype, torch.float32)

    def chunks(x: Tensor) -> Tensor:
        """`[batch, heads, n_chunks, size, features]`, padded with tokens that write nothing."""
        x = F.pad(x.to(precision), (0, 0, 0, 0, 0, n_chunks * size - time))
        return x.unflatten(1, (n_chunks, size)).permute(0, 3, 1, 2, 4)

    q, k, v = chunks(queries), chunks(keys), chunks(values)
    writes = k.mT @ v
    start = torch.zeros_like(writes[:, :, 0]) if state is None else state.to(precision)
    memories = torch.cat([start[:, :, None], writes], dim=2).cumsum(2)
    output = q @ memories[:, :, :-1] + (q @ k.mT).tril() @ v
    output = output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :time]
    return output, memories[:, :, -1].clone() if return_state else None
