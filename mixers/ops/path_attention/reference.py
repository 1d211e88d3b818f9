"""The definition, token by token: each token first changes all keys before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import autocast

from . import PathCache
from .cache import gather, keep


def path_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    directions: Tensor,
    beta: Tensor,
    log_forget: Tensor | None,
    scale: float,
    chunk_size: int,
    state: PathCache | None,
    return_state: bool,
) -> tuple[Tensor, PathCache | None]:
    groups = queries.shape[2] // keys.shape[2]
    with autocast(queries.device.type, enabled=False):
        tokens = gather(state, keys, values, directions, beta, log_forget)
        queries = queries.to(tokens.keys.dtype)
        all_values = tokens.values.values.to(tokens.keys.dtype).repeat_interleave(groups, dim=2)
        changed = anchored = tokens.anchored
        ys = []
        for i in range(tokens.edge, tokens.length):
            w, b = tokens.directions[:, i - tokens.edge, None], tokens.beta[:, i - tokens.edge, None, :, None]
            changed = changed - b * (changed * w).sum(-1, keepdim=True) * w
            changed = torch.cat([changed, tokens.keys[:, i - tokens.edge, None]], dim=1)
            if (i + 1) % chunk_size == 0:
                anchored = changed
            if i < tokens.past:
                continue
            seen = changed.repeat_interleave(groups, dim=2)
            logits = torch.einsum("bhd,bshd->bsh", queries[:, i - tokens.past], seen) * scale
            if tokens.log_forget is not None:
                total = tokens.log_forget.values[:, : i + 1].to(logits.dtype).cumsum(1)
                logits = logits + total[:, -1:] - total
            ys.append(torch.einsum("bsh,bshd->bhd", logits.softmax(1), all_values[:, : i + 1]))
        y = torch.stack(ys, dim=1).to(values.dtype)
        return y, keep(state, tokens, anchored, chunk_size) if return_state else None
