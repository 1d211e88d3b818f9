"""The integers of FwPKM's value pass: where the tokens of all chunks are, and which rows they touch, sorted once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..chunks import Segment
from .primitives import Accesses, Window, bags


@dataclass(frozen=True)
class Layout:
    """The windows of all segments after each other, `T` tokens; within a window all rows, and of each its time.

    lengths: tokens of each window, all rows together; first `[segments]`: where it begins. segment `[T]`: whose a token
    is; token `[T]`: its place in `rows * n` tokens. paired, counted `[T]`: whether it is
    written, and whether its accesses count; scale: of the step, a number or `[T]`.
    """

    windows: list[Window]
    lengths: list[int]
    first: Tensor
    segment: Tensor
    token: Tensor
    paired: Tensor
    counted: Tensor
    scale: Tensor | float

    def gates(self, gates: Tensor) -> Tensor:
        """Of `gates [rows, n]` those of all windows' tokens, zero where no pair is written; differentiable."""
        return gates.reshape(-1).index_select(0, self.token).where(self.paired, 0.0)


def lay_out(segments: list[Segment], begin: int, n: int, lookahead: int, rows: int, device: torch.device) -> Layout:
    """For `rows` sequences of `n` tokens from the absolute position `begin` on."""
    windows = _windows(segments, begin, lookahead, rows)
    lengths = [w.rows * w.time for w in windows]
    starts = itertools.accumulate(lengths[:-1], initial=0)
    described = [
        (first, s.end - s.start, s.start - begin, s.pair_end - s.start, s.access_end - s.start)
        for first, s in zip(starts, segments)
    ]
    by_segment = _on_device(torch.tensor(described).T, device)
    segment = torch.arange(len(segments), device=device)
    segment = segment.repeat_interleave(by_segment[1] * rows, output_size=sum(lengths))
    first, time, start, pairs, accesses = by_segment.index_select(1, segment)
    place = torch.arange(len(segment), device=device) - first
    row = place // time
    place = place - row * time
    scale: Tensor | float = 1.0
    if any(s.scale != 1 for s in segments):
        scales = torch.tensor([s.scale for s in segments], dtype=torch.float64)
        scale = _on_device(scales, device).index_select(0, segment)
    token = row * n + start + place
    return Layout(windows, lengths, by_segment[0], segment, token, place < pairs, place < accesses, scale)


def _windows(segments: list[Segment], begin: int, lookahead: int, rows: int) -> list[Window]:
    windows, output, early = [], 0, 0
    for s in segments:
        new, carried, pairs = s.end - s.read, s.read - s.start, s.pair_end - s.start
        first = s.start - begin + lookahead
        windows.append(
            Window(
                rows=rows,
                time=carried + new,
                carried=carried,
                pairs=pairs,
                rewrites=s.complete,
                output=slice(output, output + new),
                early=slice(early, early + carried),
                targets=slice(first, first + pairs),
            )
        )
        output, early = output + new, early + carried
    return windows


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    """Without making the host wait for the device, as `to` alone does."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@dataclass(frozen=True)
class Plan:
    """What the value pass does, on tables with a row for each of the slots `touched [U]`, sorted and distinct.

    accesses: to those rows, window by window; order `[T*J]`: of all of them.
    counts: how many of its accesses count, of each row of each window's accesses. share `[T, J]`: `heads * top_k` over
    the accessed row's count, times the step's scale.
    """

    layout: Layout
    touched: Tensor
    accesses: list[Accesses]
    order: Tensor
    counts: list[Tensor]
    share: Tensor

    def split(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Weights of the accesses `[T, J]`, each window's."""
        return weights.split(self.layout.lengths)

    def sort(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Weights of the accesses `[T, J]`, each window's in the order of its accesses."""
        in_order = weights.reshape(-1).index_select(0, self.order)
        return in_order.split([len(a.order) for a in self.accesses])

    def written(self) -> Tensor:
        """Which rows are written, `[U]`."""
        rows, counts = (torch.cat(parts) for parts in zip(*((a.rows, c) for a, c in zip(self.accesses, self.counts))))
        return torch.zeros_like(self.touched).index_add_(0, rows, counts) > 0


def make_plan(layout: Layout, slots: Tensor, dtype: torch.dtype) -> Plan:
    """Sort the accesses to `slots [T, J]`, `memory * n_slots + slot`.

    Here the host waits for the device, once a call: for how many distinct rows there are in each window and in all. A
    table with a row for every access would do without, and often be several times as large.
    """
    device, per_token = slots.device, slots.shape[1]
    by_slot, order = slots.reshape(-1).sort(stable=True)
    row = _number(by_slot)
    ids = torch.empty_like(row).index_copy_(0, order, row)
    segment, again = layout.segment.index_select(0, order // per_token).sort(stable=True)
    order = order.index_select(0, again)  # by window, of each by row, of each by token
    group = _number(segment * len(order) + row.index_select(0, again))
    ends = [length * per_token for length in itertools.accumulate(layout.lengths)]
    last = group.index_select(0, _on_device(torch.tensor(ends) - 1, device))
    n_rows, *group_ends = (torch.cat([row[-1:], last]) + 1).tolist()
    touched = by_slot.index_select(0, torch.searchsorted(row, torch.arange(n_rows, device=device)))
    offsets = torch.searchsorted(group, torch.arange(group_ends[-1] + 1, device=device))
    rows = ids.index_select(0, order.index_select(0, offsets[:-1]))

    token = order // per_token
    counted = layout.counted.index_select(0, token).cumsum(0)  # of integers: exact, in any order
    counts = F.pad(counted, (1, 0)).index_select(0, offsets).diff()
    share = (per_token / counts.clamp(min=1).to(dtype)).index_select(0, group)
    share = torch.empty_like(share).index_copy_(0, order, share).view(slots.shape)
    if isinstance(layout.scale, Tensor):
        share = share * layout.scale.to(dtype)[:, None]

    first = layout.first.index_select(0, segment)
    groups = [end - begin for begin, end in zip([0, *group_ends], group_ends)]
    starts, owner = bags(max(layout.lengths), per_token, device)
    parts = zip(
        ids.view(slots.shape).split(layout.lengths),
        order.split([n * per_token for n in layout.lengths]),
        (token - first).split([n * per_token for n in layout.lengths]),
        rows.split(groups),
        (offsets[:-1] - (first * per_token).index_select(0, offsets[:-1])).split(groups),
    )
    accesses = [Accesses(*p, starts[: len(p[0])], owner[: p[0].numel()]) for p in parts]
    return Plan(layout, touched, accesses, order, list(counts.split(groups)), share)


def _number(values: Tensor) -> Tensor:
    """Sorted values, numbered from 0, equal ones alike."""
    return F.pad(values[1:] != values[:-1], (1, 0)).cumsum(0)
