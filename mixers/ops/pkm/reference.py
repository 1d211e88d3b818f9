"""The definition of a product-key memory: the scores of all `n_subkeys**2` slots, and the best of them. Never fast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import PkmOutput


def pkm(queries: Tensor, keys: Tensor, values: Tensor, top_k: int, score: str, sparse_gradient: bool) -> PkmOutput:
    first, second = queries.chunk(2, dim=-1)
    rows, columns = _scores(first, keys[:, 0], score), _scores(second, keys[:, 1], score)
    products = rows[..., :, None] + columns[..., None, :]  # [batch, time, heads, n_subkeys, n_subkeys]
    best, slots = products.flatten(-2).topk(top_k, dim=-1)
    weights = best.softmax(-1)
    found = F.embedding(slots, values, sparse=sparse_gradient)
    retrieved = (weights.to(values.dtype)[..., None] * found).sum((2, 3))
    return PkmOutput(retrieved, slots, weights)


def _scores(queries: Tensor, keys: Tensor, score: str) -> Tensor:
    """Every query half `[batch, time, heads, d]` against every sub-key `[heads, n, d]`: `[batch, time, heads, n]`."""
    if score == "dot":
        return torch.einsum("bthd,hnd->bthn", queries, keys)
    return -torch.log(1e-3 + (queries[..., None, :] - keys).square().sum(-1))
