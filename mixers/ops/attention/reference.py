"""The definition: all scores, a mask, a softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    time, heads, d_head = queries.shape[1:]
    key_time, kv_heads = keys.shape[1:3]
    keys, values = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (keys, values))
    scores = torch.einsum("bthd,bshd->bhts", queries, keys) / d_head**0.5
    query_position = torch.arange(key_time - time, key_time, device=keys.device)[:, None]
    key_position = torch.arange(key_time, device=keys.device)
    hidden = key_position > query_position
    if window is not None:
        hidden = hidden | (key_position <= query_position - window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights, values)
