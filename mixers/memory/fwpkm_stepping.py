"""Decoding with FwPKM: tokens of a chunk only read, so that a step is the same for all of them; its last token, with
which the chunk is written, is for the mixer itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, autocast

from ..interface import NotFiniteInputError
from ..ops.fwpkm import FwpkmOptions, FwpkmState
from ..ops.fwpkm.lookup import Rows, read_token
from ..ops.fwpkm.problem import Run
from ..state import GrowableBuffer
from ..stepping import CannotStep, Stepped, Stepper
from .fwpkm_inspection import recorder

if TYPE_CHECKING:
    from .fwpkm import FwPKM, FwPKMState

TOKENS = ("queries", "targets", "gates")


class FwpkmStepper(Stepper):
    """Keys, written rows and the open chunk's tokens in place; the last state of the mixer itself for all else.

    What memories wrote lies in memory twice, in that state and in `Rows`.
    """

    has_edges = True
    n_views = 6

    def __init__(self, mixer: FwPKM) -> None:
        if mixer.keeps_memory:
            raise CannotStep("calls change the mixer itself")
        if mixer.backend == "reference":
            raise CannotStep("its backend 'reference' is not the one that steps are recorded with")
        if mixer.chunk_size == 1:
            raise CannotStep("every token ends a chunk")
        self.mixer = mixer
        self._rows: Rows | None = None
        self._log: tuple[Run, ...] = ()
        self._keys: Tensor | None = None
        self._buffers: list[Tensor] = []

    def begin(self, state: FwPKMState) -> None:
        fast: FwpkmState = state.fast
        self.options = FwpkmOptions(**self.mixer.settings)
        self._find_rows(fast).clear()
        self._log = ()
        self.resume(state)
        assert self._keys is not None
        self.structure = self.options, [(v.shape, v.dtype, v.device) for v in (self._keys, *self._buffers)]

    def resume(self, state: FwPKMState) -> None:
        fast: FwpkmState = state.fast
        mixer = self.mixer
        mixer.check_state(state)
        rows = self._find_rows(fast)
        # a rewrite adds to the log and merges its last runs: what stands there anew says all that is new
        known = {id(run) for run in self._log}
        for run in fast.log:
            if id(run) not in known:
                rows.write(run)
        memories = fast.batch if self.options.scope == "sequence" else 1
        keys = mixer.keys.to(rows.rows.dtype).expand(memories, *mixer.keys.shape) if fast.keys is None else fast.keys
        self._keys = _in_place(self._keys, keys)
        self._log, self._state = fast.log, state
        self._hold_tokens(fast)

    def _find_rows(self, fast: FwpkmState) -> Rows:
        memories = fast.batch if self.options.scope == "sequence" else 1
        places, d_v = memories * fast.n_slots, fast.targets.storage.shape[2]
        like = fast.targets.storage
        if self._rows is None or (len(self._rows.place), self._rows.rows.shape[1]) != (places, d_v):
            self._rows = Rows(places, d_v, like)
        return self._rows

    def _hold_tokens(self, fast: FwpkmState) -> None:
        """The tokens of the open chunk, and those before it that its rewrite needs, each at a place of its own."""
        held = [buffer.values for buffer in fast.tokens]
        sizes = [(v.shape[0], self.options.lookahead + self.options.chunk_size, *v.shape[2:]) for v in held]
        if [(b.shape, b.dtype) for b in self._buffers] != [(size, v.dtype) for size, v in zip(sizes, held)]:
            self._buffers = [v.new_ones(size) for size, v in zip(sizes, held)]  # gates that nobody gives are 1
        self._first = fast.position - held[0].shape[1]
        place = self._place(self._first, fast.position)
        for buffer, values in zip(self._buffers, held):
            buffer[:, place : place + values.shape[1]] = values

    def _place(self, token: int, position: int) -> int:
        """Where a token lies while `position` is the next one to come."""
        return self.options.lookahead + token - self.options.chunks.start_of(position)

    def views(self, position: int) -> list[Tensor]:
        assert self._rows is not None and self._keys is not None
        return [self._keys, self._rows.place, self._rows.rows, *self._buffers]

    def layout(self, position: int) -> int:
        assert self._rows is not None
        return len(self._rows.rows)

    def is_edge(self, position: int) -> bool:
        return (position + 1) % self.options.chunk_size == 0 or recorder() is not None

    def step(self, x: Tensor, position: Tensor, carried: list[Tensor], views: list[Tensor]) -> Stepped:
        mixer, (keys, place, rows, *buffers) = self.mixer, views
        queries, targets, gates = mixer.project(x)
        queries = mixer.normalise_queries(queries.unflatten(-1, (mixer.heads, -1))).to(keys.dtype)
        slot = (position % self.options.chunk_size + self.options.lookahead).unsqueeze(0)
        for buffer, new in zip(buffers, (queries, targets, gates if mixer.gated_loss else None)):
            if new is not None:
                buffer.index_copy_(1, slot, new.to(buffer.dtype))
        with autocast(x.device.type, enabled=False):
            retrieved = read_token(queries, keys, place, rows, mixer.values, self.options)
        return mixer.combine(x, retrieved, targets, gates), []

    def state(self, position: int) -> FwPKMState:
        fast: Any = self._state.fast
        chunks = self.options.chunks
        first = max(self._first, chunks.window_start(chunks.start_of(position)))
        window = slice(self._place(first, position), self._place(position, position))
        held = {name: buffer[:, window].clone() for name, buffer in zip(TOKENS, self._buffers)}
        self._check_finite(held["queries"])
        if not torch.is_inference_mode_enabled():  # for good, and for gradients
            keys = None if fast.keys is None else fast.keys.clone()
            fast = replace(fast, keys=keys, log=tuple((slots.clone(), rows.clone()) for slots, rows in fast.log))
        fast = replace(fast, position=position, **{name: GrowableBuffer.of(values) for name, values in held.items()})
        return replace(self._state, position=position, fast=fast)

    def _check_finite(self, queries: Tensor) -> None:
        """What the mixer checks of its input at every call, once a chunk."""
        if queries.device.type == "cpu" and not queries.isfinite().all():
            where = f" at {self.mixer.place}" if self.mixer.place else ""
            raise NotFiniteInputError(f"{self.mixer.card.name}{where} expects finite x, got NaN or infinity")


def _in_place(old: Tensor | None, new: Tensor) -> Tensor:
    if old is None or (old.shape, old.dtype) != (new.shape, new.dtype):
        return new.clone(memory_format=torch.contiguous_format)
    return old.copy_(new)
