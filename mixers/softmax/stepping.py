"""Decoding with a cache of keys and values whose memory stays where it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..ops.attention.sdpa import one, row_of_bias
from ..state import GrowableBuffer, MixerState
from ..stepping import CannotStep, Stepper, description

SMALLEST_BUCKET = 256
"""With static addresses a step sees a power of two of places, at least so many, and masks what is not written yet."""


@dataclass(frozen=True)
class Cache:
    """What one step sees of a cache.

    buffers `[batch, length, ...]`, of which the token's own place `slot [1]` is yet to be written; visible
    `[1, length]`: which places are, with that one; None if all of them are.
    """

    buffers: list[Tensor]
    slot: Tensor
    visible: Tensor | None

    def append(self, *new: Tensor) -> list[Tensor]:
        """Write the token's entries `[batch, 1, ...]`, one for each buffer; returns the buffers as they then are."""
        for buffer, entry in zip(self.buffers, new, strict=True):
            buffer.index_copy_(1, self.slot, entry.to(buffer.dtype))
        return self.buffers

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        sinks: Tensor | None = None,
        log_forget: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """What `query [batch, 1, heads, d_head]` reads, `[batch, 1, heads, d_value]`; see `attention`."""
        keys, values = keys.to(query.dtype), values.to(query.dtype)
        bias = self.visible
        if log_forget is not None:
            bias = self._faded(log_forget, keys.shape[2])
        return one(query, keys, values, bias, sinks, query.shape[-1] ** -0.5 if scale is None else scale)

    def _faded(self, log_forget: Tensor, kv_heads: int) -> Tensor:
        if self.visible is None:
            return row_of_bias(log_forget, kv_heads)
        bias = row_of_bias(log_forget.where(self.visible[..., None], 0), kv_heads)
        return bias.where(self.visible, -torch.inf)


class CachingMixer(Protocol):
    backend: str

    def decode(
        self, x: Tensor, position: Tensor, cache: Cache, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One token: the output, and what `carried`, the state's tensors beside the buffers, becomes."""
        ...


class CacheStepper(Stepper):
    """Of a mixer that appends to buffers of its state and reads all of them, in any order, by `one` query.

    buffers: their names in the state. window: a token sees so many, itself included, and the oldest makes room for the
    newest, so that places are out of order; None: all.
    """

    def __init__(
        self, mixer: CachingMixer, max_length: int, static: bool, buffers: tuple[str, ...], window: int | None = None
    ) -> None:
        if mixer.backend not in ("auto", "sdpa"):
            raise CannotStep(f"its backend {mixer.backend!r} is not the one that steps are recorded with")
        self.mixer, self.static, self.names, self.window = mixer, static, buffers, window
        self.capacity = max_length if window is None else min(window, max_length)
        self.n_views = len(buffers) + static
        self._storages: list[Tensor] = []

    def begin(self, state: Any) -> None:
        held = [getattr(state, name).values for name in self.names]
        if any(values.shape[1] != self._count(state.position) for values in held):
            raise CannotStep("its cache does not hold the tokens before its position")
        sizes = [(v.shape[0], self.capacity, *v.shape[2:]) for v in held]
        if [(s.shape, s.dtype) for s in self._storages] != [(size, v.dtype) for size, v in zip(sizes, held)]:
            self._storages = [v.new_zeros(size) for size, v in zip(sizes, held)]
        slots = self._slots(state.position, held[0].device)
        for storage, values in zip(self._storages, held):
            storage.index_copy_(1, slots, values)
        self._places = torch.arange(self.capacity, device=held[0].device)[None]
        rest = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in self.names}
        self._carried_names = [name for name, value in rest.items() if isinstance(value, Tensor)]
        self.carried = [rest[name].clone() for name in self._carried_names]
        self._skeleton = dataclasses.replace(state, **dict.fromkeys((*self.names, *self._carried_names)))
        self.structure = description(self._skeleton), sizes, [v.dtype for v in held], description(tuple(self.carried))

    def views(self, position: int) -> list[Tensor]:
        length = self.layout(position) if self.static else min(position + 1, self.capacity)
        found = [storage.narrow(1, 0, length) for storage in self._storages]
        return [*found, self._places.narrow(1, 0, length)] if self.static else found

    def layout(self, position: int) -> int:
        return min(self.capacity, max(SMALLEST_BUCKET, 1 << position.bit_length()))

    def step(
        self, x: Tensor, position: Tensor, carried: list[Tensor], views: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        slot = position if self.window is None else position % self.capacity
        visible = views[-1] <= position if self.static else None
        cache = Cache(views[: len(self.names)], slot.unsqueeze(0), visible)
        y, after = self.mixer.decode(x, position, cache, dict(zip(self._carried_names, carried)))
        return y, [after[name] for name in self._carried_names]

    def state(self, position: int) -> MixerState:
        slots = self._slots(position, self._places.device)
        held = {n: GrowableBuffer.of(s.index_select(1, slots)) for n, s in zip(self.names, self._storages)}
        carried = {name: t.clone() for name, t in zip(self._carried_names, self.carried)}
        state: MixerState = dataclasses.replace(self._skeleton, position=position, **held, **carried)
        return state

    def _count(self, position: int) -> int:
        return position if self.window is None else min(position, self.window - 1)

    def _slots(self, position: int, device: torch.device) -> Tensor:
        """Where the tokens lie that the state at `position` holds, the oldest first."""
        slots = torch.arange(position - self._count(position), position, device=device)
        return slots if self.window is None else slots % self.capacity
