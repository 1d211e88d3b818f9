"""Product keys the fast way: scores of the halves and the few sums that can be best, never a score for every slot."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..product_keys import Score, best_subkeys, best_sums, slots_of
from . import PkmOutput


def pkm(queries: Tensor, keys: Tensor, values: Tensor, top_k: int, score: Score, sparse_gradient: bool) -> PkmOutput:
    batch, time, heads, d_k = queries.shape
    n_subkeys = keys.shape[2]
    halves = queries.reshape(batch * time, heads, 2, d_k // 2).permute(1, 2, 0, 3)
    best, index = (
        t.unflatten(0, (heads, 2)) for t in best_subkeys(halves.flatten(0, 1), keys.flatten(0, 1), top_k, score)
    )
    total, places = best_sums(best[:, 0], best[:, 1], top_k)  # [heads, tokens, top_k]
    slots = slots_of(index[:, 0], index[:, 1], places, n_subkeys)
    slots, weights = slots.transpose(0, 1), total.softmax(-1).transpose(0, 1)
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
