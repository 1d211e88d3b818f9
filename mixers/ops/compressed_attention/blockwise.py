"""Some queries at a time, over the compressed tokens that the last of them sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .importance import Blocks, importance, select, visible

SCORES = 2**21  # computed at once at most


def compressed_attention(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Blocks, position: int
) -> tuple[Tensor, Tensor]:
    (batch, time, heads), n = queries.shape[:3], keys.shape[1]
    rows = min(time, max(16, SCORES // (batch * heads * max(n, 1))))
    queries, keys, values = (x.transpose(1, 2) for x in (queries * queries.shape[3] ** -0.5, keys, values))
    outputs, selections = [], []
    for piece in queries.split(rows, dim=2):
        positions = torch.arange(position, position + piece.shape[2], device=piece.device)
        position += piece.shape[2]
        seen = min(n, blocks.complete(position))
        y, shared = _attend(piece, keys[:, :, :seen], values[:, :, :seen], ~visible(blocks, positions, seen))
        outputs.append(y)
        with torch.no_grad():
            selections.append(select(importance(shared, blocks), blocks, positions, position))
    most = max(s.shape[-1] for s in selections)
    selections = [F.pad(s, (0, most - s.shape[-1]), value=-1) for s in selections]
    return torch.cat(outputs, dim=2).transpose(1, 2), torch.cat(selections, dim=2).transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[batch, heads, time, d_v]`, and weights summed over the heads of a group, without gradients."""
    (batch, heads, time, _), kv_heads = queries.shape, keys.shape[1]
    rows = queries.unflatten(1, (kv_heads, -1)).flatten(2, 3)  # the heads of a group follow one another
    scores = (rows @ keys.mT).unflatten(2, (-1, time))
    if not keys.shape[2]:
        return values.new_zeros(batch, heads, time, values.shape[3]), scores.detach().sum(dim=2)
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0)
    y = weights.flatten(2, 3) @ values
    return y.unflatten(2, (-1, time)).flatten(1, 2), weights.detach().sum(dim=2)
