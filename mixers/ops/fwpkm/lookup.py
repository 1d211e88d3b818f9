"""Reading the memory one token at a time: tensors whose sizes stay, where a `Memory` has a log that grows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..product_keys import best_subkeys, best_sums, slots_of
from .addressing import by_token, weigh
from .problem import FwpkmOptions, Run

FEWEST_ROWS = 64


class Rows:
    """The rows that memories wrote, `rows [capacity, d_v]`, and where to find them, `place [memories * n_slots]`.

    A place is -1 for a slot that is as it was initially. Both tensors keep their addresses until the capacity, which
    then doubles, is used up.
    """

    def __init__(self, n_places: int, d_v: int, like: Tensor) -> None:
        self.place = torch.full((n_places,), -1, dtype=torch.long, device=like.device)
        self.rows = like.new_zeros((min(n_places, FEWEST_ROWS), d_v))
        self.count = 0

    def clear(self) -> None:
        """As it is before anything was written."""
        self.place.fill_(-1)
        self.count = 0

    def write(self, run: Run) -> None:
        """Take over the rows of a run, which hide what earlier ones say of their slots."""
        slots, rows = run
        fresh = slots[self.place[slots] < 0]
        end = self.count + len(fresh)
        self.place[fresh] = torch.arange(self.count, end, device=fresh.device)
        if end > len(self.rows):
            longer = self.rows.new_zeros((min(len(self.place), max(end, 2 * len(self.rows))), rows.shape[1]))
            longer[: self.count] = self.rows[: self.count]
            self.rows = longer
        self.count = end
        self.rows.index_copy_(0, self.place[slots], rows)


def read_token(
    queries: Tensor, keys: Tensor, place: Tensor, rows: Tensor, initial: Tensor, options: FwpkmOptions
) -> Tensor:
    """What one token of each sequence retrieves, `[batch, 1, d_v]`, for `queries [batch, 1, heads, d_k]`.

    keys `[memories, heads, 2, n_subkeys, d_k/2]`; place, rows: see `Rows`; initial `[n_slots, d_v]`.
    """
    memories, n_subkeys, n_slots = len(keys), keys.shape[3], len(initial)
    # [memories, heads, 2, tokens, d_k/2]
    halves = queries.squeeze(1).unflatten(-1, (2, -1)).unflatten(0, (memories, -1)).permute(0, 2, 3, 1, 4)
    best, index = best_subkeys(halves.flatten(0, 2), keys.flatten(0, 2), options.top_k, options.score)
    best, index = best.unflatten(0, keys.shape[:3]), index.unflatten(0, keys.shape[:3])
    total, pairs = best_sums(best[:, :, 0], best[:, :, 1], options.top_k)
    weights = weigh(by_token(total, options), options).flatten(0, 1)
    slots = slots_of(index[:, :, 0], index[:, :, 1], pairs, n_subkeys).transpose(1, 2).flatten(2)
    own = slots if memories == 1 else slots + torch.arange(memories, device=slots.device)[:, None, None] * n_slots
    found = place.index_select(0, own.flatten())
    written = rows.index_select(0, found.clamp_min(0))
    unwritten = initial.index_select(0, slots.flatten()).to(rows.dtype)
    read = torch.where(found.unsqueeze(1) >= 0, written, unwritten).unflatten(0, weights.shape)
    return weights.unsqueeze(1) @ read
