"""The pieces of FwPKM that a device may want its own kernels for, and plain torch for each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..product_keys import Score, best_subkeys, best_sums, candidate_sums

_SUM = 0  # mode of an embedding bag


@dataclass(frozen=True)
class Accesses:
    """Which rows of a table `N` tokens touch, `J` each: `ids [N, J]`; and the same sorted by row.

    order `[N*J]`: the places in `ids.flatten()`, sorted by row; of accesses that were sorted together with others, the
    places among all of them. token `[N*J]`: whose they are, in that order. rows `[R]`: sorted and distinct, all that
    are touched, maybe more; offsets `[R]`: where in `order` each of them begins. starts `[N]`, owner `[N*J]`: where in
    `ids.flatten()` a token begins, and whose each place is.
    """

    ids: Tensor
    order: Tensor
    token: Tensor
    rows: Tensor
    offsets: Tensor
    starts: Tensor
    owner: Tensor

    @classmethod
    def to(cls, ids: Tensor, n_rows: int, like: Accesses | None = None) -> Accesses:
        """The accesses `ids [N, J]` to a table of `n_rows`, each of which is one of `rows`.

        like: others that may be of the same sizes, and then share what depends on those alone.
        """
        (n, slots), ids = ids.shape, ids.contiguous()
        if like is not None and (like.ids.shape, len(like.rows)) == ((n, slots), n_rows):
            rows, bounds = like.rows, (like.starts, like.owner)
        else:
            rows, bounds = torch.arange(n_rows, device=ids.device), bags(n, slots, ids.device)
        ordered, order = ids.flatten().sort(stable=True)
        return cls(ids, order, order // slots, rows, torch.searchsorted(ordered, rows), *bounds)

    def sort(self, weights: Tensor) -> Tensor:
        """Weights of all accesses that were sorted together, those of these in the order of `order`."""
        return weights.reshape(-1).index_select(0, self.order)


def bags(n: int, slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`Accesses.starts` and `Accesses.owner` of `n` tokens."""
    token = torch.arange(n, device=device)
    return token * slots, token.repeat_interleave(slots, output_size=n * slots)


@dataclass(frozen=True)
class Window:
    """The `N = rows * time` tokens that one chunk works on: `time` tokens of each row, all rows after each other.

    The first `carried` of a row were new in the call's last chunk, or in an earlier call; the others are `output` of
    the call's new tokens. early: the place of the carried ones among those of all windows. If the window `rewrites` the
    memory, the first `pairs` are written against `targets` among all tokens.
    """

    rows: int
    time: int
    carried: int
    pairs: int
    rewrites: bool
    output: slice
    early: slice
    targets: slice


@dataclass(frozen=True)
class Rows:
    """Of all chunks, rows first: retrieved `[rows, new tokens, d_v]`, targets `[rows, tokens, d_v]`, and what was
    retrieved for tokens that a chunk carried over, `early [rows, carried tokens, d_v]`, None if nobody will ask."""

    retrieved: Tensor
    early: Tensor | None
    targets: Tensor


@dataclass(frozen=True)
class Kernels:
    """Functions for tables `[U, d_v]`, `x [N, d_v]` and weights of accesses `[N, J]`; none is differentiable.

    address(halves, keys, top_k, score) scores `halves [memories, heads, 2, n, d_k/2]` against
        `keys [memories, heads, 2, n_subkeys, d_k/2]` and returns the best sub-scores and their places
        `[memories, heads, 2, n, top_k]`, the best sums of one of each half, and their places among the
        `top_k * top_k` (first half major), `[memories, heads, n, top_k]`; all best first.
    read(table, accesses, weights): the weighted sum of the rows that each token accesses, `[N, d_v]`.
    gather_dot(table, accesses, x): the inner product of each accessed row with its token's `x`, `[N, J]`.
    spread(accesses, x, sorted_weights): the sum of `weight * x[token]` over the accesses of each of `accesses.rows`,
        `[R, d_v]`, without atomics: the same bits every time. The weights as `Accesses.sort` returns them.
    add(table, accesses, x, sorted_weights): the same sums, added to the table in place.
    recall(table, accesses, weights, window, rows): reads, stores what was read in `rows`, and returns the errors
        `[N, d_v]`: what was read minus its target, minus nothing where no pair is written.
    recall_backward(d_table, accesses, coefficients, window, rows, d_retrieved, d_targets): of a step that added
        `coefficients * error` to the rows of a table with the gradient `d_table`. Stores the gradient of the window's
        targets in `d_targets`, and returns the errors again, the gradient of what was read, of which `d_retrieved` is
        a part, and that of the coefficients.
    add_both(first, second, accesses, (x, sorted_weights), (x, sorted_weights)): `add` to two tables of one size.
    """

    address: Callable[[Tensor, Tensor, int, Score], tuple[Tensor, Tensor, Tensor, Tensor]]
    read: Callable[[Tensor, Accesses, Tensor], Tensor]
    gather_dot: Callable[[Tensor, Accesses, Tensor], Tensor]
    spread: Callable[[Accesses, Tensor, Tensor], Tensor]
    add: Callable[[Tensor, Accesses, Tensor, Tensor], None]
    recall: Callable[[Tensor, Accesses, Tensor, Window, Rows], Tensor]
    recall_backward: Callable[[Tensor, Accesses, Tensor, Window, Rows, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    add_both: Callable[[Tensor, Tensor, Accesses, tuple[Tensor, Tensor], tuple[Tensor, Tensor]], None]


@functools.lru_cache(maxsize=64)
def _candidates(top_k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Kept, because bringing them to a device makes the host wait."""
    with torch.inference_mode(False):
        return candidate_sums(top_k, device)


def _address(halves: Tensor, keys: Tensor, top_k: int, score: Score) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = keys.shape[:3]
    best, index = best_subkeys(halves.flatten(0, 2), keys.flatten(0, 2), top_k, score)
    best, index = best.unflatten(0, sizes), index.unflatten(0, sizes)
    return best, index, *best_sums(best[:, :, 0], best[:, :, 1], top_k, _candidates(top_k, halves.device))


def _bag(table: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """`F.embedding_bag`, without all that it looks at first."""
    return torch.ops.aten._embedding_bag_forward_only(table, ids, offsets, False, _SUM, False, weights)[0]


def _read(table: Tensor, accesses: Accesses, weights: Tensor) -> Tensor:
    return _bag(table, accesses.ids.view(-1), accesses.starts, weights.reshape(-1))


def _gather_dot(table: Tensor, accesses: Accesses, x: Tensor) -> Tensor:
    # the gradient of `_read` for its weights: unlike `table[ids] @ x`, it makes no copy of the rows
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, table, accesses.ids.view(-1), accesses.starts, accesses.owner, _SUM
    )
    return products.view(accesses.ids.shape)


def _spread(accesses: Accesses, x: Tensor, sorted_weights: Tensor) -> Tensor:
    return _bag(x, accesses.token, accesses.offsets, sorted_weights)


def _add(table: Tensor, accesses: Accesses, x: Tensor, sorted_weights: Tensor) -> None:
    table.index_add_(0, accesses.rows, _spread(accesses, x, sorted_weights))


def _recall(table: Tensor, accesses: Accesses, weights: Tensor, window: Window, rows: Rows) -> Tensor:
    flat = _read(table, accesses, weights)
    read = flat.view(window.rows, window.time, -1)
    rows.retrieved[:, window.output] = read[:, window.carried :]
    if rows.early is not None and window.carried:
        rows.early[:, window.early] = read[:, : window.carried]
    if window.pairs:
        read[:, : window.pairs].sub_(rows.targets[:, window.targets])
    return flat


def recalled_errors(window: Window, rows: Rows) -> Tensor:
    """What `Kernels.recall` returned for a window, from what it stored."""
    assert rows.early is not None
    error = torch.cat([rows.early[:, window.early], rows.retrieved[:, window.output]], dim=1)
    if window.pairs:
        error[:, : window.pairs].sub_(rows.targets[:, window.targets])
    return error.view(-1, error.shape[2])


def _recall_backward(
    d_table: Tensor,
    accesses: Accesses,
    coefficients: Tensor,
    window: Window,
    rows: Rows,
    d_retrieved: Tensor,
    d_targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    error = recalled_errors(window, rows)
    d_read = _read(d_table, accesses, coefficients)
    by_row = d_read.view(window.rows, window.time, -1)
    if window.pairs:
        torch.neg(by_row[:, : window.pairs], out=d_targets[:, window.targets])
    by_row[:, window.carried :].add_(d_retrieved[:, window.output])
    return error, d_read, _gather_dot(d_table, accesses, error)


def _add_both(
    first: Tensor, second: Tensor, accesses: Accesses, to_first: tuple[Tensor, Tensor], to_second: tuple[Tensor, Tensor]
) -> None:
    _add(first, accesses, *to_first)
    _add(second, accesses, *to_second)


TORCH = Kernels(_address, _read, _gather_dot, _spread, _add, _recall, _recall_backward, _add_both)
