"""The four pieces of FwPKM that a device may want its own kernels for, and plain torch for each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..product_keys import Score, best_subkeys, best_sums

_SUM = 0  # mode of an embedding bag


class Accesses:
    """Which rows of a table `N` tokens touch, `J` each: `ids [N, J]`, and the same sorted by row, once that is needed.

    order `[N*J]`: the places of the accesses in `ids.flatten()`, sorted by row. rows `[R]`: sorted and distinct, those
    that are touched, or, with `n_rows`, all. offsets `[R]`: where in `order` each of them begins.
    """

    def __init__(self, ids: Tensor, n_rows: int | None = None) -> None:
        self.ids, self.n_rows = ids.contiguous(), n_rows

    @functools.cached_property
    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        ordered, order = self.ids.flatten().sort(stable=True)
        if self.n_rows is not None:
            rows = torch.arange(self.n_rows, device=ordered.device)
            return order, rows, torch.searchsorted(ordered, rows)
        rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        return order, rows, counts.cumsum(0) - counts

    @property
    def order(self) -> Tensor:
        return self._sorted[0]

    @property
    def rows(self) -> Tensor:
        return self._sorted[1]

    @property
    def offsets(self) -> Tensor:
        return self._sorted[2]

    def count(self, counted: Tensor) -> tuple[Tensor, Tensor]:
        """How many accesses by the tokens of a mask `[N]` each of `rows` has, `[R]`; the same by access, `[N, J]`."""
        sorted_mask = counted.index_select(0, self.order // self.ids.shape[1])
        before = F.pad(sorted_mask.cumsum(0), (1, 0))  # integers: exact, in any order
        ends = F.pad(self.offsets[1:], (0, 1), value=len(self.order))
        counts = before.index_select(0, ends) - before.index_select(0, self.offsets)
        by_access = counts.repeat_interleave(ends - self.offsets, output_size=len(self.order))
        return counts, torch.empty_like(by_access).index_copy_(0, self.order, by_access).view(self.ids.shape)


@dataclass(frozen=True)
class Kernels:
    """Functions for tables `[U, d_v]`, `x [N, d_v]` and weights of accesses `[N, J]`; none is differentiable.

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
    sizes = keys.shape[:3]
    best, index = best_subkeys(halves.flatten(0, 2), keys.flatten(0, 2), top_k, score)
    best, index = best.unflatten(0, sizes), index.unflatten(0, sizes)
    return best, index, *best_sums(best[:, :, 0], best[:, :, 1], top_k)


def _read(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)


def _gather_dot(table: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    n, slots = ids.shape
    token = torch.arange(n, device=ids.device)
    # the gradient of `_read` for its weights: unlike `table[ids] @ x`, it makes no copy of the rows
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, table, ids.flatten(), token * slots, token.repeat_interleave(slots, output_size=n * slots), _SUM
    )
    return products.view(n, slots)


def _spread(accesses: Accesses, x: Tensor, weights: Tensor) -> Tensor:
    sorted_weights = weights.flatten().index_select(0, accesses.order)
    token = accesses.order // accesses.ids.shape[1]
    return F.embedding_bag(token, x, accesses.offsets, mode="sum", per_sample_weights=sorted_weights)


def _add(table: Tensor, accesses: Accesses, x: Tensor, weights: Tensor, sign: float) -> None:
    table.index_add_(0, accesses.rows, _spread(accesses, x, sign * weights))  # its alpha costs another pass


TORCH = Kernels(_address, _read, _gather_dot, _spread, _add)
