"""What every backend of `fwpkm` is given: options, tokens with their absolute positions, and the memory so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...state import SHARED, GrowableBuffer, SequenceState
from ..chunks import Boundary, Chunks, Segment, Tokens
from ..product_keys import Score

KeyObjective = Literal["address", "memory", "both", "none"]
Scope = Literal["sequence", "batch"]
Nonlinearity = Literal["softmax", "silu", "relu"]
KeyGradient = Literal["exact", "first_order"]
_CHOICES = {
    "score": Score,
    "key_objective": KeyObjective,
    "boundary": Boundary,
    "scope": Scope,
    "nonlinearity": Nonlinearity,
    "key_gradient": KeyGradient,
}


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
    nonlinearity: Nonlinearity = "softmax"
    weight_decay: float = 0.0
    clip: float | None = None
    key_gradient: KeyGradient = "exact"

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        _ = self.chunks  # has to fit as well
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not self.learning_rate >= 0:
            raise ValueError(f"learning_rate must not be negative, got {self.learning_rate}")
        if not 0 <= self.learning_rate * self.weight_decay < 1:  # at 1 an update would erase the row
            raise ValueError(
                "weight_decay times learning_rate must be at least 0 and less than 1, "
                f"got {self.weight_decay} and {self.learning_rate}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")

    @property
    def chunks(self) -> Chunks:
        return Chunks(self.chunk_size, self.lookahead, self.boundary)

    @property
    def keys_follow_memory_loss(self) -> bool:
        return self.key_objective in ("memory", "both")

    @property
    def keys_follow_address_loss(self) -> bool:
        return self.key_objective in ("address", "both")

    @property
    def kept_share(self) -> float:
        """What weight decay leaves of a row at each update that touches it."""
        return 1.0 - self.learning_rate * self.weight_decay

    @property
    def plain_step(self) -> bool:
        """Whether rows change by the sum of their accesses' steps, and by nothing else."""
        return self.kept_share == 1 and self.longest_step is None

    @property
    def longest_step(self) -> float | None:
        """The largest 2-norm of a row's step, decay aside; None if unlimited."""
        return self.clip * self.learning_rate if self.clip is not None and self.learning_rate else None


Run = tuple[Tensor, Tensor]
"""Written rows: slots `[n]` int64, sorted and distinct, `memory * n_slots + slot`; their values `[n, d_v]`."""

_NO_SLOT = 2**62  # after all others


@dataclass(frozen=True)
class Memory:
    """Fast weights: `keys [memories, heads, 2, n_subkeys, d_k/2]`, and a log of what differs from the initial table.

    `initial [n_slots, d_v]` is the table that all memories start from. In the `log`, oldest first, a later run hides
    what earlier ones say of a slot; each is at least twice as long as the next, so there are few. A rewrite adds a run
    and merges short ones: it costs what it writes, times a logarithm, however much was written before.
    """

    keys: Tensor
    log: tuple[Run, ...]
    initial: Tensor

    @property
    def n_slots(self) -> int:
        return self.initial.shape[0]

    def read(self, slots: Tensor) -> Tensor:
        """The rows `[n, d_v]` at `slots [n]` (numbered as in a run); differentiable."""
        rows = self.initial.index_select(0, slots % self.n_slots).to(self.keys.dtype)
        for run_slots, run_rows in self.log:
            place = torch.searchsorted(run_slots, slots).clamp_max(len(run_slots) - 1)
            found = run_slots.index_select(0, place) == slots
            # of what is not found the first row, again and again: it stays in the cache, and the host need not wait
            rows = torch.where(found[:, None], run_rows.index_select(0, place * found), rows)
        return rows

    def write(self, slots: Tensor, rows: Tensor, written: Tensor) -> Memory:
        """A memory with those of `rows [n, d_v]` at `slots [n]`, sorted and distinct, that the mask `written [n]`
        chooses; differentiable. The host waits for the device once, for how many rows there are."""
        kept, length = len(self.log), len(slots)
        while kept and len(self.log[kept - 1][0]) < 2 * length:
            kept -= 1
            length += len(self.log[kept][0])
        merged = _merge([*self.log[kept:], (slots, rows)], written)
        return replace(self, log=(*self.log[:kept], merged) if len(merged[0]) else self.log[:kept])

    def merged(self) -> Run:
        """The whole log as one run; empty if nothing was written."""
        return merge_all(self.log, self.initial.new_empty((0, self.initial.shape[1]), dtype=self.keys.dtype))


def _merge(log: Sequence[Run], written: Tensor | None = None) -> Run:
    """Runs, oldest first, as one; of the last one's rows those that the mask `written` chooses, if it is given."""
    slots, rows = (torch.cat(parts) for parts in zip(*log)) if len(log) > 1 else log[0]
    if written is not None:
        chosen = F.pad(written, (len(slots) - len(written), 0), value=True)
        slots = slots.where(chosen, _NO_SLOT)
    slots, order = slots.sort(stable=True)
    newest = (slots != F.pad(slots[1:], (0, 1), value=_NO_SLOT)).nonzero()[:, 0]
    return slots.index_select(0, newest), rows.index_select(0, order.index_select(0, newest))


def merge_all(log: tuple[Run, ...], no_rows: Tensor) -> Run:
    """The log as one run; `no_rows [0, d_v]` if it is empty."""
    nothing = torch.empty(0, dtype=torch.long, device=no_rows.device)
    return _merge(log) if log else (nothing, no_rows)


@dataclass(frozen=True)
class Problem:
    """One call: tokens from absolute position `origin` on, of which those from `position` on are new.

    tokens: queries `[batch, n, heads, d_k]`, targets `[batch, n, d_v]` and gates `[batch, n]`.
    wants_memory: whether anyone asks for the memory after the call; what only it would show need not be worked out.
    """

    tokens: Tokens
    origin: int
    position: int
    memory: Memory
    options: FwpkmOptions
    finish: bool
    wants_memory: bool

    @property
    def queries(self) -> Tensor:
        return self.tokens.queries.values

    @property
    def targets(self) -> Tensor:
        return self.tokens.targets.values

    @property
    def gates(self) -> Tensor:
        return self.tokens.gates.values

    @property
    def end(self) -> int:
        return self.origin + self.tokens.queries.length

    @property
    def segments(self) -> list[Segment]:
        return self.options.chunks.segments(self.position, self.end, self.finish)


@dataclass(frozen=True)
class Solution:
    """What a backend returns: for the new tokens as in `FwpkmOutput`, and the memory after them."""

    retrieved: Tensor
    slots: Tensor
    weights: Tensor
    memory: Memory


@dataclass(frozen=True, eq=False)
class FwpkmState(SequenceState):
    """The fast weights of `batch` sequences, as what they wrote over the shared initial memory, and the open chunk.

    settings, chunk_size: the options it was made with. keys: None until the first rewrite. log: see `Memory`.
    queries, targets, gates: the tokens, batch first, that the next rewrite will need.
    """

    settings: str
    chunk_size: int
    keys: Tensor | None = field(metadata=SHARED)  # these two are not simply batch-first: see pick
    log: tuple[Run, ...] = field(metadata=SHARED)
    queries: GrowableBuffer
    targets: GrowableBuffer
    gates: GrowableBuffer
    n_slots: int
    shared_memory: bool

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.queries, self.targets, self.gates)

    @property
    def slots(self) -> Tensor:
        """The slots that were written, `[written]`: `memory * n_slots + slot`, sorted."""
        return self.written()[0]

    @property
    def rows(self) -> Tensor:
        """The values of `slots`, `[written, d_v]`."""
        return self.written()[1]

    def written(self) -> Run:
        """Everything that was written, as one run."""
        return merge_all(self.log, self.targets.storage.new_empty((0, self.targets.storage.shape[2])))

    def pick(self, index: Tensor) -> FwpkmState:
        picked = super().pick(index)
        if self.shared_memory:
            return picked
        keys = None if self.keys is None else self.keys.index_select(0, index.to(self.keys.device))
        log = tuple(run for run in (self._pick_run(run, index) for run in self.log) if len(run[0]))
        return replace(picked, keys=keys, log=log)

    def _pick_run(self, run: Run, index: Tensor) -> Run:
        slots, rows = run
        index = index.to(slots.device)
        bounds = torch.searchsorted(slots, torch.arange(self.batch + 1, device=index.device) * self.n_slots)
        first, count = bounds[index], (bounds[1:] - bounds[:-1])[index]
        place = torch.repeat_interleave(first - (count.cumsum(0) - count), count)
        place = place + torch.arange(len(place), device=index.device)
        new_row = torch.repeat_interleave(torch.arange(len(index), device=index.device), count)
        return new_row * self.n_slots + slots[place] % self.n_slots, rows.index_select(0, place)
