"""The definition: all scores, a mask made of the selected blocks, a softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    queries, keys, values = (x.to(torch.promote_types(values.dtype, torch.float32)) for x in (queries, keys, values))
    time, heads, d_k = queries.shape[1:]
    key_time, kv_heads = keys.shape[1:3]
    keys, values = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (keys, values))
    scores = torch.einsum("bthd,bshd->bhts", queries, keys) / d_k**0.5
    key_position = torch.arange(key_time, device=keys.device)
    query_position = torch.arange(key_time - time, key_time, device=keys.device)[:, None]
    selected = (blocks[..., None] == key_position // block_size).any(dim=3)  # [batch, time, groups, key_time]
    selected = selected.repeat_interleave(heads // blocks.shape[2], dim=2).transpose(1, 2)
    visible = selected & (key_position <= query_position)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights, values)
