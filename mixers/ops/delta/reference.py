"""The gated delta rule as the paper states it: one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float,
    chunk_size: int,
    state: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor | None]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    q, k, v, g, b = (x.to(dtype) for x in (queries, keys, values, log_decay, beta))
    batch, time, heads, d_k = k.shape
    memory = k.new_zeros(batch, heads, d_k, v.shape[3]) if state is None else state.to(dtype)
    outputs = []
    for t in range(time):
        memory = memory * g[:, t].exp()[..., None, None]
        held = torch.einsum("bhkv,bhk->bhv", memory, k[:, t])
        memory = memory + torch.einsum("bhk,bhv->bhkv", k[:, t], b[:, t, :, None] * (v[:, t] - held))
        outputs.append(torch.einsum("bhkv,bhk->bhv", memory, q[:, t] * scale))
    return torch.stack(outputs, dim=1).to(values.dtype), memory if return_state else None
