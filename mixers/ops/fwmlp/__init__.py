"""A dense fast-weight memory: a SwiGLU MLP that the sequence trains, the baseline of FwPKM (arXiv 2601.00671)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, autocast, float32, promote_types

from ...state import GrowableBuffer, SequenceState
from ..chunks import Chunks, Segment, Tokens, check_options, described
from ..dispatch import Backend, Op

__all__ = ["OP", "FwmlpOptions", "FwmlpOutput", "FwmlpState", "Problem", "Solution", "Weights", "finish", "fwmlp"]

OP = Op(__name__, Backend("chunked", "chunked:run"), Backend("reference", "reference:run", trust="never"))

Weights = tuple[Tensor, ...]
"""up `[d_hidden, d_k]`, its bias `[d_hidden]`, gate and bias of the same shapes, down `[d_v, d_hidden]`, bias `[d_v]`.
The initial ones are shared by the batch; as fast weights each has a dimension more, in front: the sequence."""


@dataclass(frozen=True)
class FwmlpOptions:
    """The settings of `fwmlp`, validated; see its docstring."""

    chunk_size: int = 512
    lookahead: int = 1
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        _ = self.chunks  # has to fit as well
        if not self.learning_rate >= 0:
            raise ValueError(f"learning_rate must not be negative, got {self.learning_rate}")

    @property
    def chunks(self) -> Chunks:
        return Chunks(self.chunk_size, self.lookahead)


@dataclass(frozen=True, eq=False)
class FwmlpState(SequenceState):
    """The fast weights of `batch` sequences, and the tokens that their next rewrite needs.

    settings, chunk_size: the options it was made with. weights: six tensors, batch first; None until the first rewrite.
    """

    settings: str
    chunk_size: int
    weights: Weights | None
    queries: GrowableBuffer
    targets: GrowableBuffer
    gates: GrowableBuffer

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.queries, self.targets, self.gates)


@dataclass(frozen=True)
class FwmlpOutput:
    """retrieved `[batch, time, d_v]`, float32 at least; state or None."""

    retrieved: Tensor
    state: FwmlpState | None


@dataclass(frozen=True)
class Problem:
    """What a backend is given: tokens from absolute position `origin` on, `weights [1 or batch, ...]`, and the chunks'
    work, see `Segment`; `[batch, n, d_k]`, `[batch, n, d_v]` and `[batch, n]`."""

    queries: Tensor
    targets: Tensor
    gates: Tensor
    origin: int
    weights: Weights
    segments: list[Segment]
    lookahead: int
    learning_rate: float


@dataclass(frozen=True)
class Solution:
    """What a backend returns: `retrieved [batch, new tokens, d_v]` and the weights after them."""

    retrieved: Tensor
    weights: Weights


def fwmlp(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    weights: Sequence[Tensor],
    *,
    chunk_size: int = 512,
    lookahead: int = 1,
    learning_rate: float = 0.1,
    state: FwmlpState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> FwmlpOutput:
    """Read an MLP token by token, and train it chunk by chunk: `f(q) = down(up(q) * silu(gate(q)))`, all with biases.

    queries `[batch, time, d_k]`; targets `[batch, time, d_v]`, what the memory should have returned for the query
    `lookahead` tokens earlier; gates `[batch, time]`, the weight of each pair (None: all ones); weights: six tensors,
    see `Weights`, with which every sequence begins.

    Tokens of a chunk read the weights from before it. When it is complete, each sequence takes one step of plain
    gradient descent on its loss, the mean over the P pairs and the features of the gated squared error,

        loss = 1 / (P * d_v) * sum_t gates_t * ||f(queries_t) - targets_{t+lookahead}||^2

    over the pairs whose target is in the chunk (`boundary="carry"` of `fwpkm`). The released code has this mean too,
    without gates and without a factor 1/2, so that `learning_rate` 0.1 with `gates=None` is the step of the paper.
    Differentiable in every tensor, through the steps. Fast weights are at least float32.

    Raises `ValueError` for sizes that do not fit, an option out of range, or a state made with other options.
    """
    options = FwmlpOptions(chunk_size, lookahead, learning_rate)
    if gates is None:
        gates = targets.new_ones(targets.shape[:2])
    _check_sizes(queries, targets, gates, weights)
    if queries.shape[1] == 0:
        raise ValueError(f"fwmlp needs at least one token, got queries of shape {list(queries.shape)}")
    dtype = promote_types(weights[0].dtype, float32)
    new = queries.to(dtype), targets.to(dtype), gates.to(dtype)
    position, tokens = 0, Tokens.of(*new)
    if state is not None:
        _check_state(state, len(queries), weights, options)
        position, tokens = state.position, state.tokens.append(*new)
    end = position + queries.shape[1]
    work = options.chunks.segments(position, end)
    retrieved, fast = _solve(tokens, end, weights, state, work, options, backend)
    if not return_state:
        return FwmlpOutput(retrieved, None)
    tokens = options.chunks.open_tokens(tokens, end, continued=state is not None)
    after = FwmlpState(len(queries), end, described(options), chunk_size, fast, *tokens)
    return FwmlpOutput(retrieved, after)


def finish(state: FwmlpState, weights: Sequence[Tensor], *, backend: str = "auto", **options: Any) -> FwmlpState:
    """Let the unfinished chunk rewrite the memory, as at the end of a text; position 0 of the next text follows.

    weights, options: as `fwmlp` was called with. Pairs whose target never came are not written.
    """
    settings = FwmlpOptions(**options)
    _check_sizes(state.queries.values, state.targets.values, state.gates.values, weights)
    _check_state(state, state.batch, weights, settings)
    work = settings.chunks.segments(state.position, state.position, finish=True)
    _, fast = _solve(state.tokens, state.position, weights, state, work, settings, backend)
    return replace(state, position=0, weights=fast, **state.tokens.keep_last(0)._asdict())


def _check_sizes(queries: Tensor, targets: Tensor, gates: Tensor, weights: Sequence[Tensor]) -> None:
    if queries.ndim != 3 or targets.ndim != 3 or len(weights) != 6 or weights[0].ndim != 2:
        raise ValueError(
            "fwmlp expects queries [batch, time, d_k], targets [batch, time, d_v] and six weights, the first "
            f"[d_hidden, d_k], got shapes {list(queries.shape)}, {list(targets.shape)} and "
            f"{[list(w.shape) for w in weights]}"
        )
    (batch, time, d_k), d_v, d_hidden = queries.shape, targets.shape[2], len(weights[0])
    if targets.shape != (batch, time, d_v) or gates.shape != (batch, time):
        raise ValueError(
            f"queries {list(queries.shape)} need targets [{batch}, {time}, d_v] and gates [{batch}, {time}], "
            f"got {list(targets.shape)} and {list(gates.shape)}"
        )
    expected = [(d_hidden, d_k), (d_hidden,), (d_hidden, d_k), (d_hidden,), (d_v, d_hidden), (d_v,)]
    if [tuple(w.shape) for w in weights] != expected:
        raise ValueError(
            f"d_k {d_k}, d_hidden {d_hidden} and d_v {d_v} need weights of shapes {expected}, "
            f"got {[tuple(w.shape) for w in weights]}"
        )


def _check_state(state: FwmlpState, batch: int, weights: Sequence[Tensor], options: FwmlpOptions) -> None:
    if not isinstance(state, FwmlpState):
        raise ValueError(f"fwmlp expects an FwmlpState, got {type(state).__name__}")
    if state.batch != batch:
        raise ValueError(f"the state holds {state.batch} sequences but queries has {batch}")
    check_options(state, options)
    held = (state.queries.storage.shape[2], state.targets.storage.shape[2])
    sizes = (weights[0].shape[1], len(weights[5]))
    if held != sizes or (state.weights is not None and state.weights[0].shape[1:] != weights[0].shape):
        raise ValueError(f"the state belongs to a memory of (d_k, d_v) {held} or another d_hidden, got {sizes}")


def _solve(
    tokens: Tokens,
    end: int,
    weights: Sequence[Tensor],
    state: FwmlpState | None,
    work: list[Segment],
    options: FwmlpOptions,
    backend: str,
) -> tuple[Tensor, Weights | None]:
    """What the new tokens retrieve, and the fast weights after them: None while they are still the initial ones."""
    queries, targets, gates = (buffer.values for buffer in tokens)
    before = None if state is None else state.weights
    fast = before if before is not None else tuple(w.to(queries.dtype)[None] for w in weights)
    rate = options.learning_rate
    problem = Problem(queries, targets, gates, end - queries.shape[1], fast, work, options.lookahead, rate)
    run = OP.select(backend, queries.device)
    with autocast(queries.device.type, enabled=False):
        solution = run(problem)
    rewritten = any(segment.pair_end > segment.start for segment in work)
    return solution.retrieved, solution.weights if rewritten else before
