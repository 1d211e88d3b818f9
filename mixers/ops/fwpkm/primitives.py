"""The four pieces of FwPKM that a device may want its own kernels for, and plain torch for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Score


@dataclass(frozen=True)
class Accesses:
    """Which rows of a table `N` tokens touch, `J` each, in two orders.

    ids `[N, J]`: by token. Sorted by row: `order [N*J]`, the places of the accesses in `ids.flatten()`, and their
    `token [N*J]`; `rows [R]`, distinct and sorted, and `offsets [R]`: which rows there are and where each begins.
    """

    ids: Tensor
    order: Tensor
    token: Tensor
    rows: Tensor
    offsets: Tensor

    @staticmethod
    def of(ids: Tensor) -> Accesses:
        ordered, order = ids.flatten().sort(stable=True)
        rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        return Accesses(ids, order, order // ids.shape[1], rows, counts.cumsum(0) - counts)


@dataclass(frozen=True)
class Kernels:
    """Functions for tables `[U, d_v]`, `x [N, d_v]` and weights of accesses `[N, J]`; only `address` is differentiable.

    address(halves, keys, top_k, score) scores `halves [memories, heads, 2, n, d_k/2]` against
        `keys [memories, heads, 2, n_subkeys, d_k/2]` and returns the best sub-scores and their places
        `[memories, heads, 2, n, top_k]`, the best sums of one of each half, and their places among the
        `top_k * top_k` (first half major), `[memories, heads, n, top_k]`; all best first.
    read(table, ids, weights): the weighted sum of the rows that each token accesses, `[N, d_v]`.
    gather_dot(table, ids, x): the inner product of each accessed row with its token's `x`, `[N, J]`.
    spread(accesses, x, weights): the sum of `weight * x[token]` over the accesses of each of `accesses.rows`,
        `[R, d_v]`, without atomics: the same bits every time.
    add(table, accesses, x, weights, sign): the same sums, times `sign`, added to the table in place.
    """

    address: Callable[[Tensor, Tensor, int, Score], tuple[Tensor, Tensor, Tensor, Tensor]]
    read: Callable[[Tensor, Tensor, Tensor], Tensor]
    gather_dot: Callable[[Tensor, Tensor, Tensor], Tensor]
    spread: Callable[[Accesses, Tensor, Tensor], Tensor]
    add: Callable[[Tensor, Accesses, Tensor, Tensor, float], None]


def _address(halves: Tensor, keys: Tensor, top_k: int, score: Score) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = halves @ keys.transpose(-1, -2)
    if score == "idw":
        distance = (halves**2).sum(-1, keepdim=True) + (keys**2).sum(-1)[..., None, :] - 2 * scores
        nearest, index = distance.topk(top_k, dim=-1, largest=False)  # the logarithm is monotone: only of the best
        best = -torch.log(1e-3 + nearest.clamp(min=0))
    else:
        best, index = scores.topk(top_k, dim=-1)
    sums = best[:, :, 0, :, :, None] + best[:, :, 1, :, None, :]
    total, pairs = sums.flatten(-2).topk(top_k, dim=-1)
    return best, index, total, pairs


def _read(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)


def _gather_dot(table: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    return (table[ids] @ x[..., None]).squeeze(-1)


def _spread(accesses: Accesses, x: Tensor, weights: Tensor) -> Tensor:
    sorted_weights = weights.flatten().index_select(0, accesses.order)
    return F.embedding_bag(accesses.token, x, accesses.offsets, mode="sum", per_sample_weights=sorted_weights)


def _add(table: Tensor, accesses: Accesses, x: Tensor, weights: Tensor, sign: float) -> None:
    table.index_add_(0, accesses.rows, _spread(accesses, x, weights), alpha=sign)


TORCH = Kernels(_address, _read, _gather_dot, _spread, _add)
