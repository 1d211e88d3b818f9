"""The definition, in the logarithm: all logits, and sums over the keys after each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import autocast
from torch.nn import functional as F


def stick_breaking(
    queries: Tensor, keys: Tensor, values: Tensor, attend_current: bool, remainder: bool, scale: float
) -> Tensor:
    dtype, time, key_time = values.dtype, queries.shape[1], keys.shape[1]
    precision = torch.promote_types(dtype, torch.float32)
    with autocast(queries.device.type, enabled=False):
        keys, values = (x.repeat_interleave(queries.shape[2] // keys.shape[2], dim=2) for x in (keys, values))
        queries, keys, values = (x.to(precision) for x in (queries, keys, values))
        logits = torch.einsum("bthd,bshd->bhts", queries, keys) * scale
        visible = torch.ones(time, key_time, dtype=torch.bool, device=keys.device)
        visible = visible.tril(key_time - time - (0 if attend_current else 1))
        kept = F.logsigmoid(-logits).masked_fill(~visible, 0)
        kept_by_later = kept.flip(-1).cumsum(-1).flip(-1) - kept
        weights = (F.logsigmoid(logits) + kept_by_later).exp().masked_fill(~visible, 0)
        y = torch.einsum("bhts,bshd->bthd", weights, values)
        if remainder:
            y = y + kept.sum(-1).exp().transpose(1, 2).unsqueeze(-1) * values[:, key_time - time :]
        return y.to(dtype)
