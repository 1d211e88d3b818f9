"""Decoding as a function of tensors: what a decoder records once and then repeats for every token.

A call of a mixer checks its input, builds its state and chooses backends in Python, which takes longer than the work of
one token. A `Stepper` splits that: tensors that a step takes and gives back, and a `step` that is the same sequence of
operations at every token, its position among the tensors. What does not fit is refused with the reason, by
`CannotStep`, and the decoder calls the mixer as always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .state import GrowableBuffer, MixerState, StateValue

if TYPE_CHECKING:
    from .interface import Mixer

Stepped = tuple[Tensor, list[Tensor]]
"""The output of a step, and what the tensors that it carries become."""

_POSITION = "position"


class CannotStep(Exception):
    """Why a mixer is called as always instead of being recorded, in words that follow its name."""


class Stepper:
    """How one mixer decodes. Every step works on `x [batch, 1, d_model]` and the position, int64, of no dimensions.

    carried: tensors that a step takes and gives back anew, each of the same shape and dtype; the decoder replaces them.
    A step changes nothing in place but what `views` gives it. structure: what a recording depends on; where it is
    another one than before, a step has to be recorded anew. has_edges: whether `is_edge` is to be asked. Subclasses
    raise `CannotStep` where they cannot serve.
    """

    carried: list[Tensor] = []  # noqa: RUF012  # replaced, never appended to
    n_views = 0
    has_edges = False
    structure: Any = None

    def begin(self, state: Any) -> None:
        """Take over a state, which is not changed, nor shared with."""
        raise NotImplementedError

    def resume(self, state: Any) -> None:
        """Take over the state that the mixer made of the last one given out, at an edge."""
        self.begin(state)

    def views(self, position: int) -> list[Tensor]:
        """The `n_views` tensors that the step at `position` works on beside them, in place if need be.

        Their lengths may differ from step to step; `step` must then consist of the same operations for every length.
        """
        return []

    def step(
        self, x: Tensor, position: Tensor, carried: list[Tensor], views: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The output `[batch, 1, d_model]`, and what `carried` becomes."""
        raise NotImplementedError

    def layout(self, position: int) -> Any:
        """What tells one set of `views` from another, for graphs that know them by their addresses and sizes."""
        return None

    def is_edge(self, position: int) -> bool:
        """Whether the token at `position` is for the mixer itself, because more than `step` is due with it."""
        return False

    def state(self, position: int) -> MixerState:
        """The state after `position` tokens, as the mixer itself would have made it; nothing changes it later."""
        raise NotImplementedError


class StateStepper(Stepper):
    """Of any mixer whose state keeps its sizes: the state's tensors, and the mixer's own `forward`.

    `forward` is given a state whose position is a tensor. All that it sees from Python stays as it is from token to
    token, which is checked, so that what is recorded once holds for good; and who asks for the position as a number is
    found out by the recording, which refuses every look at the contents of a tensor.
    """

    def __init__(self, mixer: Mixer) -> None:
        if mixer.keeps_memory:
            raise CannotStep("calls change the mixer itself")
        self.mixer = mixer

    def begin(self, state: MixerState) -> None:
        self.structure = description(state)
        self.carried = [t.clone(memory_format=torch.contiguous_format) for t in tensors_of(state)]
        if any(found != state.position for found in _positions(state)):
            raise CannotStep("parts of its state are at different positions")
        self.skeleton = state.map_tensors(lambda t: t.new_empty(0))  # its own are not kept

    def step(
        self, x: Tensor, position: Tensor, carried: list[Tensor], views: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        before = rebuilt(self.skeleton, iter(carried), position)
        y, after = self.mixer(x, before, return_state=True)
        assert after is not None
        new = list(tensors_of(after))
        if description(after) != description(before):
            raise CannotStep("its state changes its structure from token to token")
        if any(not isinstance(found, Tensor) or found.dtype != torch.int64 for found in _positions(after)):
            raise CannotStep("its state's position is not that of before and one more")
        return y, new

    def state(self, position: int) -> MixerState:
        return rebuilt(self.skeleton, iter([t.clone() for t in self.carried]), position)


class ChunkedStepper(StateStepper):
    """Of a mixer whose state keeps its sizes, but where the last token of a chunk is not like the others.

    A position that is a tensor tells its `forward` that the token at it does not end a chunk of `chunk_size`.
    """

    has_edges = True

    def __init__(self, mixer: Mixer, chunk_size: int) -> None:
        super().__init__(mixer)
        if chunk_size == 1:
            raise CannotStep("every token ends a chunk")
        self.chunk_size = chunk_size

    def is_edge(self, position: int) -> bool:
        return (position + 1) % self.chunk_size == 0


def check_own(mixer: Mixer, kind: type[Mixer], *methods: str) -> None:
    """Raise `CannotStep` if a subclass of `kind` does any of it in another way, which its stepper would not know of."""
    for name in methods:
        if getattr(type(mixer), name) is not getattr(kind, name):
            raise CannotStep(f"its {name} is not that of {kind.__name__}")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a state in a fixed order, its position not among them. Raises `CannotStep` for one that grows."""
    if isinstance(value, GrowableBuffer):
        raise CannotStep("its state grows with the text")
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, StateValue):
        for name, part in _parts(value):
            if name != _POSITION:
                yield from tensors_of(part)


def rebuilt(value: Any, tensors: Iterator[Tensor], position: int | Tensor) -> Any:
    """The state with other tensors, in the order of `tensors_of`, and at another position."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(rebuilt(part, tensors, position) for part in value)
    if isinstance(value, StateValue):
        parts = {
            name: position if name == _POSITION else rebuilt(part, tensors, position) for name, part in _parts(value)
        }
        return dataclasses.replace(value, **parts)
    return value


def description(value: Any) -> Any:
    """All of a state but its position and what its tensors hold: types, sizes, plain values."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, tuple):
        return tuple(description(part) for part in value)
    if isinstance(value, StateValue):
        return type(value), tuple((name, description(part)) for name, part in _parts(value) if name != _POSITION)
    return value


def _parts(value: StateValue) -> Sequence[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def _positions(value: Any) -> Iterator[int | Tensor]:
    if isinstance(value, tuple):
        for part in value:
            yield from _positions(part)
    elif isinstance(value, StateValue):
        for name, part in _parts(value):
            if name == _POSITION:
                yield part
            else:
                yield from _positions(part)
