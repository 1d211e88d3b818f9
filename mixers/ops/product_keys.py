"""Product keys (Lample et al. 2019, arXiv 1907.05242): the best of `n_subkeys**2` slots, from two sets of scores.

Slot `i * n_subkeys + j` has the sum of the scores of the two halves of a query against sub-keys i and j. The best sums
are among those of the best halves. Shared by the slow memory (PKM) and the fast one (FwPKM).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Score = Literal["idw", "dot"]
"""`dot`: the inner product of query half and sub-key; `idw`, inverse distance weighting: `-log(1e-3 + ||q - k||^2)`."""

IDW_EPSILON = 1e-3


def best_subkeys(halves: Tensor, keys: Tensor, top_k: int, score: Score) -> tuple[Tensor, Tensor]:
    """The best `top_k` scores of `halves [books, n, d]` against `keys [books, n_subkeys, d]`, and their sub-keys.

    Both `[books, n, top_k]`, best first. Differentiable.
    """
    if score == "dot":
        return (halves @ keys.mT).topk(top_k, dim=-1)
    norms = keys.square().sum(-1)[:, None]
    unfinished = torch.baddbmm(norms, halves, keys.mT, alpha=-2)  # the query's own norm changes no order
    nearest, index = unfinished.topk(top_k, dim=-1, largest=False)
    nearest = nearest + halves.square().sum(-1, keepdim=True)
    return -torch.log(IDW_EPSILON + nearest.clamp(min=0)), index


Candidates = tuple[Tensor, Tensor, Tensor]


def candidate_sums(top_k: int, device: torch.device) -> Candidates:
    """Which sums of one of `top_k` and one of another `top_k`, both sorted from the best, can be among the best.

    Returns the places of the two, and the one among the `top_k * top_k` (first major). Made on the device, so that the
    host does not wait for it.
    """
    # The sum of places i and j (from 1) is beaten by the i * j - 1 others at places no worse than both, so only pairs
    # with i * j <= top_k count: 119 of 1,024 for top-k 32.
    count = sum(top_k // (i + 1) for i in range(top_k))
    place = torch.arange(top_k, device=device)
    columns = top_k // (place + 1)
    row = place.repeat_interleave(columns, output_size=count)
    column = torch.arange(count, device=device) - (columns.cumsum(0) - columns).index_select(0, row)
    return row, column, row * top_k + column


def best_sums(first: Tensor, second: Tensor, top_k: int, candidates: Candidates | None = None) -> tuple[Tensor, Tensor]:
    """The best `top_k` sums of one of `first` and one of `second`, both `[..., top_k]` and sorted from the best.

    Returns the sums, best first, and their places among the `top_k * top_k` (first major). Differentiable.
    candidates: `candidate_sums`, if they are at hand.
    """
    row, column, place = candidates or candidate_sums(top_k, first.device)
    total, found = (first.index_select(-1, row) + second.index_select(-1, column)).topk(top_k, dim=-1)
    return total, place[found]


def slots_of(index: Tensor, other: Tensor, places: Tensor, n_subkeys: int) -> Tensor:
    """The slots of `places [..., top_k]`, as `best_sums` returns them, given the sub-keys of both halves."""
    k = index.shape[-1]
    return index.gather(-1, places // k) * n_subkeys + other.gather(-1, places % k)
