"""Product-key memory: a large table of values, found by the best sums of two sets of scores (arXiv 1907.05242)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, autocast, float32, promote_types

from ..dispatch import Backend, Op
from ..product_keys import Score

__all__ = ["OP", "PkmOutput", "Score", "pkm"]

OP = Op(__name__, Backend("factored", "factored:pkm"), Backend("reference", "reference:pkm", trust="never"))


@dataclass(frozen=True)
class PkmOutput:
    """retrieved `[batch, time, d_v]`; slots and weights `[batch, time, heads, top_k]`, the best first."""

    retrieved: Tensor
    slots: Tensor
    weights: Tensor


def pkm(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    top_k: int,
    score: Score = "dot",
    sparse_gradient: bool = False,
    backend: str = "auto",
) -> PkmOutput:
    """Read a product-key memory (Lample et al. 2019, arXiv 1907.05242): every token and head its `top_k` best slots.

    queries `[batch, time, heads, d_k]`; keys `[heads, 2, n_subkeys, d_k/2]`; values `[n_subkeys**2, d_v]`.
    Slot `i * n_subkeys + j` has the score `s(q1, keys[0, i]) + s(q2, keys[1, j])` of the two halves of the query, with
    `s` the `dot` product, or `idw`: `-log(1e-3 + ||q - k||^2)`. The weights of a head are a softmax over its `top_k`
    best scores; all heads read the same values, and what they retrieve is summed. Scores and weights are at least
    float32; the sum has the dtype of `values`.

    sparse_gradient: the gradient of `values` is a sparse tensor with an entry for every access, repeats included. It is
    smaller than the table while a step makes fewer than `n_subkeys**2` accesses, but only some optimizers take it.
    Raises `ValueError` for sizes that do not fit or an unknown score.
    """
    _check(queries, keys, values, top_k, score)
    dtype = promote_types(promote_types(queries.dtype, keys.dtype), float32)
    run = OP.select(backend, queries.device)
    with autocast(queries.device.type, enabled=False):
        return run(queries.to(dtype), keys.to(dtype), values, top_k=top_k, score=score, sparse_gradient=sparse_gradient)


def _check(queries: Tensor, keys: Tensor, values: Tensor, top_k: int, score: str) -> None:
    if queries.ndim != 4 or keys.ndim != 4 or values.ndim != 2 or 0 in queries.shape:
        raise ValueError(
            "pkm expects queries [batch, time, heads, d_k], keys [heads, 2, n_subkeys, d_k/2] and "
            f"values [n_subkeys**2, d_v], got shapes {list(queries.shape)}, {list(keys.shape)} and {list(values.shape)}"
        )
    heads, d_k = queries.shape[2:]
    n_subkeys = keys.shape[2]
    if keys.shape != (heads, 2, n_subkeys, d_k / 2):
        expected = f"[{heads}, 2, n_subkeys, {d_k / 2:g}]"
        raise ValueError(f"queries {list(queries.shape)} need keys of shape {expected}, got {list(keys.shape)}")
    if len(values) != n_subkeys**2:
        raise ValueError(f"{n_subkeys} sub-keys address {n_subkeys**2} slots, but values has {len(values)} rows")
    if not 1 <= top_k <= n_subkeys:
        raise ValueError(f"top_k must be in 1..n_subkeys, got {top_k} and n_subkeys {n_subkeys}")
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
