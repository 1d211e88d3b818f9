"""Random draws and look-ups that tasks share, a whole batch at a time."""

from __future__ import annotations

import numpy as np

from .base import Split

N_BUCKETS = 4  # depth is reported by quarters


def distinct(rng: np.random.Generator, rows: int, n: int, count: int) -> np.ndarray:
    """`count` different numbers below `n` in each row, in random order; int64 `[rows, count]`."""
    if 4 * count > n:
        return rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)[:, :count]
    drawn = rng.integers(n, size=(rows, count))
    left: np.ndarray = np.arange(rows)
    while left.size:  # numbers that came before in their row are drawn anew, which no number is favoured by
        part = drawn[left]
        again = previous(part) >= 0
        part[again] = rng.integers(n, size=again.sum())
        drawn[left] = part
        left = left[again.any(axis=1)]
    return drawn


def depths(rng: np.random.Generator, split: Split, batch: int, count: int) -> np.ndarray:
    """Wished depths in [0, 1), `[batch, count]`; for validation and evaluation dealt evenly over the quarters."""
    uniform = rng.random((batch, count))
    if split == "train":
        return uniform
    buckets = (np.arange(count) + rng.integers(N_BUCKETS, size=(batch, 1))) % N_BUCKETS
    return (buckets + uniform) / N_BUCKETS


def gaps(wished: np.ndarray, n_filler: int) -> np.ndarray:
    """Which of the `n_filler + 1` gaps between filler tokens lies at each wished depth; sorted, `[batch, count]`."""
    return np.sort(np.floor(wished * (n_filler + 1)).astype(np.int64), axis=1)


def starts(gaps: np.ndarray, width: int) -> np.ndarray:
    """Where pieces of `width` tokens start that are put into `gaps` of the filler; `[batch, count]`.

    Every piece before one shifts it; of those in the same gap the earlier column comes first.
    """
    order = np.argsort(gaps, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(gaps.shape[1])[None], axis=1)
    return gaps + width * ranks


def previous(ids: np.ndarray) -> np.ndarray:
    """For each place of `ids [batch, count]`, the last one before it in its row with the same id; -1 where none is."""
    order, is_first = _grouped(ids)
    before = np.where(is_first, -1, np.roll(order, 1, axis=1))
    found = np.empty_like(order)
    np.put_along_axis(found, order, before, axis=1)
    return found


def first(ids: np.ndarray) -> np.ndarray:
    """For each place of `ids [batch, count]`, the first one in its row with the same id: itself, if there is none."""
    order, is_first = _grouped(ids)
    heads = np.maximum.accumulate(np.where(is_first, np.arange(ids.shape[1]), 0), axis=1)
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.take_along_axis(order, heads, axis=1), axis=1)
    return found


def _grouped(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places by id and then by time, and whether each of them is the first with its id."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    is_first = np.ones(ids.shape, dtype=bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return order, is_first
