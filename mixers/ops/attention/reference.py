"""The definition: all scores, a mask, a softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    time, heads = queries.shape[1:3]
    key_time, kv_heads = keys.shape[1:3]
    keys, values = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (keys, values))
    scores = torch.einsum("bthd,bshd->bhts", queries, keys) * scale
    query_position = torch.arange(key_time - time, key_time, device=keys.device)[:, None]
    key_position = torch.arange(key_time, device=keys.device)
    if log_forget is not None:
        total = log_forget.double().cumsum(1).transpose(1, 2)
        scores = scores + (total[:, :, -time:, None] - total[:, :, None]).to(log_forget.dtype)
    hidden = key_position > query_position
    if window is not None:
        hidden = hidden | (key_position <= query_position - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(len(scores), -1, time, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :key_time].to(values.dtype)
    return torch.einsum("bhts,bshd->bthd", weights, values)
