"""The definition, token by token: memories are added up as a binary counter carries."""

from __future__ import annotations

import torch
from torch import Tensor


def log_linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    level_scales: Tensor,
    position: int,
    scale: float,
    chunk_size: int,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    queries, keys, values, log_decay, level_scales = in_precision(
        queries * scale, keys, values, log_decay, level_scales
    )
    top = level_scales.shape[3] - 2  # the last memory, of all that no other one holds
    memories, outputs = list(state.unbind(1)), []
    for i in range(values.shape[1]):
        t, decay = position + i, log_decay[:, i, :, None, None].exp()
        memories = [decay * memory for memory in memories]
        new = keys[:, i, :, :, None] * values[:, i, :, None]
        levels = torch.stack([new, *memories], dim=2)  # [batch, heads, levels, d_k, d_v]
        scales = level_scales[:, i, :, : levels.shape[2]]
        outputs.append(torch.einsum("bhl,bhd,bhlde->bhe", scales, queries[:, i], levels))
        digit = 0
        while digit < top and t >> digit & 1:
            new = new + memories[digit]
            memories[digit] = torch.zeros_like(new)
            digit += 1
        if digit == len(memories):
            memories.append(new)
        else:
            memories[digit] = memories[digit] + new
    return torch.stack(outputs, dim=1), torch.stack(memories, dim=1)


def in_precision(queries: Tensor, keys: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All inputs in float32, or in what values have if that is more exact; a query and a key for each head."""
    values = others[0]
    precision = torch.promote_types(values.dtype, torch.float32)
    queries, keys = (x.repeat_interleave(values.shape[2] // x.shape[2], dim=2) for x in (queries, keys))
    queries, keys, values, log_decay, level_scales = (x.to(precision) for x in (queries, keys, *others))
    return queries, keys, values, log_decay, level_scales
