"""What every backend of `fwpkm` is given: options, tokens with their absolute positions, and the memory so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ...state import SHARED, GrowableBuffer, MixerState

Score = Literal["idw", "dot"]
KeyObjective = Literal["address", "memory", "both", "none"]
Boundary = Literal["carry", "drop"]
Scope = Literal["sequence", "batch"]


@dataclass(frozen=True)
class FwpkmOptions:
    """The settings of `fwpkm`, validated; see its docstring."""

    top_k: int
    chunk_size: int
    lookahead: int = 1
    score: Score = "idw"
    temperature: float = 1.0
    learning_rate: float = 1.0
    address_weight: float = 1.0
    key_objective: KeyObjective = "address"
    boundary: Boundary = "carry"
    scope: Scope = "sequence"

    def __post_init__(self) -> None:
        for name, kind in (("score", Score), ("key_objective", KeyObjective), ("boundary", Boundary), ("scope", Scope)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.top_k < 1 or self.chunk_size < 1:
            raise ValueError(f"top_k and chunk_size must be at least 1, got {self.top_k} and {self.chunk_size}")
        if not 0 <= self.lookahead < self.chunk_size:
            raise ValueError(
                f"lookahead must be at least 0 and less than chunk_size, got {self.lookahead} and {self.chunk_size}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def keys_follow_memory_loss(self) -> bool:
        return self.key_objective in ("memory", "both")

    @property
    def keys_follow_address_loss(self) -> bool:
        return self.key_objective in ("address", "both")


@dataclass(frozen=True)
class Segment:
    """One chunk's work within a call, in absolute token positions.

    The window `start:end` is addressed with the chunk's memory; `read:end` are the new tokens, whose retrieval is
    returned. If the chunk is `complete`, it rewrites the memory: the tokens `start:pair_end` are written against their
    targets, and `start:access_end` count as accesses and in the entropies. `scale` multiplies the step of the values.
    """

    start: int
    read: int
    end: int
    complete: bool
    pair_end: int
    access_end: int
    scale: float


def chunk_start(position: int, options: FwpkmOptions) -> int:
    """The absolute position of the first token in the chunk that `position` belongs to."""
    return position // options.chunk_size * options.chunk_size


def window_start(chunk: int, options: FwpkmOptions) -> int:
    """The first token that the update of the chunk starting at `chunk` needs: with `carry`, some of the one before."""
    return max(0, chunk - options.lookahead) if options.boundary == "carry" else chunk


def segments(position: int, end: int, options: FwpkmOptions, finish: bool) -> list[Segment]:
    """The chunks that the new tokens `position:end` take part in. `finish` makes a last, shorter chunk rewrite too."""
    found = []
    for chunk in range(chunk_start(position, options), end, options.chunk_size):
        stop = min(chunk + options.chunk_size, end)
        complete = stop == chunk + options.chunk_size or finish
        read = max(chunk, position)
        if not complete:
            found.append(Segment(read, read, stop, False, read, read, 1.0))
            continue
        start = window_start(chunk, options)
        pair_end = max(start, stop - options.lookahead)
        if options.boundary == "carry":
            found.append(Segment(start, read, stop, True, pair_end, pair_end, 1.0))
        else:
            scale = (stop - chunk) / max(1, pair_end - start)
            found.append(Segment(start, read, stop, True, pair_end, stop, scale))
    return found


@dataclass(frozen=True)
class Memory:
    """Fast weights: `keys [memories, heads, 2, n_subkeys, d_k/2]`, and the rows that differ from the initial table.

    `slots [written]` int64, sorted, holds `memory * n_slots + slot`; `rows [written, d_v]` their values;
    `initial [n_slots, d_v]` is the table that all memories start from.
    """

    keys: Tensor
    slots: Tensor
    rows: Tensor
    initial: Tensor

    @property
    def n_slots(self) -> int:
        return self.initial.shape[0]

    def read(self, slots: Tensor) -> Tensor:
        """The rows `[n, d_v]` at `slots [n]` (numbered as above); differentiable."""
        rows = self.initial.index_select(0, slots % self.n_slots).to(self.rows.dtype)
        if not len(self.slots):
            return rows
        place = torch.searchsorted(self.slots, slots).clamp_max(len(self.slots) - 1)
        written = self.slots[place] == slots
        return torch.where(written[:, None], self.rows.index_select(0, place), rows)

    def write(self, slots: Tensor, rows: Tensor) -> Memory:
        """A memory with `rows [n, d_v]` at `slots [n]`, sorted and distinct; differentiable."""
        kept = ~torch.isin(self.slots, slots, assume_unique=True)
        merged, order = torch.cat([self.slots[kept], slots]).sort()
        return replace(self, slots=merged, rows=torch.cat([self.rows[kept], rows]).index_select(0, order))


@dataclass(frozen=True)
class Problem:
    """One call: tokens from absolute position `origin` on, of which those from `position` on are new.

    tokens: queries `[batch, n, heads, d_k]`, targets `[batch, n, d_v]` and gates `[batch, n]`, as buffers.
    """

    tokens: tuple[GrowableBuffer, GrowableBuffer, GrowableBuffer]
    origin: int
    position: int
    memory: Memory
    options: FwpkmOptions
    finish: bool

    @property
    def queries(self) -> Tensor:
        return self.tokens[0].values

    @property
    def targets(self) -> Tensor:
        return self.tokens[1].values

    @property
    def gates(self) -> Tensor:
        return self.tokens[2].values

    @property
    def end(self) -> int:
        return self.origin + self.tokens[0].length

    @property
    def segments(self) -> list[Segment]:
        return segments(self.position, self.end, self.options, self.finish)


@dataclass(frozen=True)
class Solution:
    """What a backend returns: for the new tokens as in `FwpkmOutput`, and the memory after them."""

    retrieved: Tensor
    slots: Tensor
    weights: Tensor
    memory: Memory


@dataclass(frozen=True, eq=False)
class FwpkmState(MixerState):
    """The fast weights of `batch` sequences, as what they wrote over the shared initial memory, and the open chunk.

    settings: the options it was made with. keys: None until the first rewrite. slots, rows: see `Memory`.
    queries, targets, gates: the tokens, batch first, that the next rewrite will need.
    """

    settings: str
    keys: Tensor | None = field(metadata=SHARED)  # these three are not simply batch-first: see pick
    slots: Tensor = field(metadata=SHARED)
    rows: Tensor = field(metadata=SHARED)
    queries: GrowableBuffer
    targets: GrowableBuffer
    gates: GrowableBuffer
    n_slots: int
    shared_memory: bool

    def pick(self, index: Tensor) -> FwpkmState:
        picked = super().pick(index)
        if self.shared_memory:
            return picked
        index = index.to(self.slots.device)
        bounds = torch.searchsorted(self.slots, torch.arange(self.batch + 1, device=index.device) * self.n_slots)
        first, count = bounds[index], (bounds[1:] - bounds[:-1])[index]
        place = torch.repeat_interleave(first - (count.cumsum(0) - count), count)
        place = place + torch.arange(len(place), device=index.device)
        new_row = torch.repeat_interleave(torch.arange(len(index), device=index.device), count)
        return replace(
            picked,
            keys=None if self.keys is None else self.keys.index_select(0, index),
            slots=new_row * self.n_slots + self.slots[place] % self.n_slots,
            rows=self.rows.index_select(0, place),
        )
