"""Product keys the fast way: the best sums are among the sums of the best halves, and among few of those.

Of two lists sorted from the best, the sum of places i and j (from 1) is beaten by all `i * j - 1` sums of places no
worse than both; so only the pairs with `i * j <= top_k` can be among the best `top_k`: 119 of 1,024 for top-k 32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import PkmOutput


def pkm(queries: Tensor, keys: Tensor, values: Tensor, top_k: int, score: str, sparse_gradient: bool) -> PkmOutput:
    batch, time, heads, d_k = queries.shape
    n_subkeys = keys.shape[2]
    halves = queries.reshape(batch * time, heads, 2, d_k // 2).permute(1, 2, 0, 3)
    best, index = _best_subkeys(halves, keys, top_k, score)  # [heads, 2, tokens, top_k]
    pairs = [(i, j) for i in range(top_k) for j in range(top_k // (i + 1))]
    row, column = torch.tensor(pairs, device=queries.device).unbind(-1)
    total, place = (best[:, 0].index_select(-1, row) + best[:, 1].index_select(-1, column)).topk(top_k, dim=-1)
    slots = index[:, 0].gather(-1, row[place]) * n_subkeys + index[:, 1].gather(-1, column[place])
    slots, weights = slots.transpose(0, 1), total.softmax(-1).transpose(0, 1)  # [tokens, heads, top_k]
    retrieved = F.embedding_bag(
        slots.flatten(1),
        values,
        mode="sum",
        per_sample_weights=weights.flatten(1).to(values.dtype),
        sparse=sparse_gradient,
    )
    return PkmOutput(
        retrieved.unflatten(0, (batch, time)), slots.unflatten(0, (batch, time)), weights.unflatten(0, (batch, time))
    )


def _best_subkeys(halves: Tensor, keys: Tensor, top_k: int, score: str) -> tuple[Tensor, Tensor]:
    """The best `top_k` sub-scores and their sub-keys, sorted, for `halves [heads, 2, tokens, d_k/2]`."""
    products = halves @ keys.mT
    if score == "dot":
        return products.topk(top_k, dim=-1)
    distance = halves.square().sum(-1, keepdim=True) + keys.square().sum(-1)[..., None, :] - 2 * products
    nearest, index = distance.topk(top_k, dim=-1, largest=False)  # the logarithm is monotone
    return -torch.log(1e-3 + nearest.clamp(min=0)), index
