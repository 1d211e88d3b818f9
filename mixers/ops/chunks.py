"""Where the chunks of a fast-weight memory end, and which tokens its rewrites need: for FwPKM and FwMLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from ..state import GrowableBuffer

Boundary = Literal["carry", "drop"]


def ends_chunk(position: int | Tensor, chunk_size: int) -> bool:
    """Whether a chunk ends after `position` tokens. A tensor, as a recorded step has it, promises that none does."""
    return not isinstance(position, Tensor) and position % chunk_size == 0


def described(options: object) -> str:
    """`name=value, ...` without the chunk size, which may change where a text begins."""
    # torch.compile does not follow what `repr` does for a dataclass
    return ", ".join(f"{name}={value!r}" for name, value in vars(options).items() if name != "chunk_size")


def check_options(state: FastWeightState, options: FastWeightOptions) -> None:
    """Raise `ValueError` if the state was made with other options; where a text begins, any chunk size will do."""
    if state.settings != described(options):
        raise ValueError(f"the state was made with {state.settings}; it cannot be continued with {described(options)}")
    check_chunk_size(state, options.chunk_size)


def check_chunk_size(state: FastWeightState, chunk_size: int) -> None:
    """Raise `ValueError` within a text that was begun with another chunk size."""
    if state.position and state.chunk_size != chunk_size:
        raise ValueError(
            f"the state is within a text read with chunk_size={state.chunk_size}; it cannot be continued with "
            f"chunk_size={chunk_size} before `finish`"
        )


class FastWeightOptions(Protocol):
    """Options of an op, a dataclass."""

    @property
    def chunk_size(self) -> int: ...


class FastWeightState(Protocol):
    """What such an op returns: the options it was made with, see `described`, and where in a text it is."""

    @property
    def settings(self) -> str: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def position(self) -> int: ...


class Tokens(NamedTuple):
    """What was read of some tokens, batch first."""

    queries: GrowableBuffer
    targets: GrowableBuffer
    gates: GrowableBuffer

    @classmethod
    def of(cls, queries: Tensor, targets: Tensor, gates: Tensor) -> Tokens:
        return cls(GrowableBuffer.of(queries), GrowableBuffer.of(targets), GrowableBuffer.of(gates))

    def append(self, queries: Tensor, targets: Tensor, gates: Tensor) -> Tokens:
        """These tokens followed by others, if there are any."""
        new = queries, targets, gates
        return Tokens(*(old.append(t) for old, t in zip(self, new))) if queries.shape[1] else self

    def keep_last(self, count: int) -> Tokens:
        return Tokens(*(buffer.keep_last(count) for buffer in self))

    def clone(self) -> Tokens:
        return Tokens.of(*(buffer.values.clone() for buffer in self))


@dataclass(frozen=True)
class Segment:
    """One chunk's work within a call, in absolute token positions.

    The window `start:end` is read with the chunk's memory; `read:end` are the new tokens, whose retrieval is returned.
    If the chunk is `complete`, it rewrites the memory: the tokens `start:pair_end` are written against their targets,
    and `start:access_end` count as accesses and in the entropies. `scale` multiplies the step of the values.
    """

    start: int
    read: int
    end: int
    complete: bool
    pair_end: int
    access_end: int
    scale: float

    @staticmethod
    def reading(start: int, end: int) -> Segment:
        """Of tokens that are read, but write nothing."""
        return Segment(start, start, end, False, start, start, 1.0)


@dataclass(frozen=True)
class Chunks:
    """Chunks of `chunk_size` at absolute multiples of it; a token's target comes `lookahead` tokens later.

    boundary: `carry` writes a pair in the chunk where its target arrives, `drop` leaves out pairs across an edge.
    Raises `ValueError` for sizes that do not fit.
    """

    chunk_size: int
    lookahead: int
    boundary: Boundary = "carry"

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if not 0 <= self.lookahead < self.chunk_size:
            raise ValueError(
                f"lookahead must be at least 0 and less than chunk_size, got {self.lookahead} and {self.chunk_size}"
            )

    def start_of(self, position: int) -> int:
        """The first token of the chunk that `position` belongs to."""
        return position // self.chunk_size * self.chunk_size

    def window_start(self, chunk: int) -> int:
        """The first token that the update of the chunk starting at `chunk` needs: with `carry`, some of the one
        before."""
        return max(0, chunk - self.lookahead) if self.boundary == "carry" else chunk

    def segments(self, position: int, end: int, finish: bool = False) -> list[Segment]:
        """The chunks that the new tokens `position:end` take part in. `finish`: a last, shorter one rewrites too."""
        found = []
        for chunk in range(self.start_of(position), end, self.chunk_size):
            stop = min(chunk + self.chunk_size, end)
            complete = stop == chunk + self.chunk_size or finish
            read = max(chunk, position)
            if not complete:
                found.append(Segment.reading(read, stop))
                continue
            start = self.window_start(chunk)
            pair_end = max(start, stop - self.lookahead)
            if self.boundary == "carry":
                found.append(Segment(start, read, stop, True, pair_end, pair_end, 1.0))
            else:
                scale = (stop - chunk) / max(1, pair_end - start)
                found.append(Segment(start, read, stop, True, pair_end, stop, scale))
        return found

    def open_tokens(self, tokens: Tokens, end: int, continued: bool) -> Tokens:
        """What the next rewrite needs of `tokens` up to `end`: the open chunk, and those whose targets it brings.

        continued: they are a state's. The caller's may be views of larger tensors, which a state must not keep alive.
        """
        needed = tokens.keep_last(min(end - self.window_start(self.start_of(end)), tokens.queries.length))
        return needed if continued else needed.clone()
