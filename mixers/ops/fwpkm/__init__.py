"""FwPKM, the sparse fast-weight memory of Zhao & Jones, "Fast-weight Product Key Memory", arXiv 2601.00671."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, autocast, compiler, float32, promote_types

from ..chunks import Boundary, Tokens, check_options, described
from ..dispatch import Backend, Call, Op, needs_triton
from ..product_keys import Score
from .problem import (
    FwpkmOptions,
    FwpkmState,
    KeyGradient,
    KeyObjective,
    Memory,
    Nonlinearity,
    Problem,
    Scope,
    Solution,
)

__all__ = ["OP", "FwpkmOptions", "FwpkmOutput", "FwpkmState", "finish", "fwpkm"]

OP = Op(
    __name__,
    Backend("triton", "triton:run", needs_triton, trust="proven", libraries=("triton",)),
    Backend("compact", "compact:run"),
    Backend("reference", "reference:run", trust="never"),
    problems="problems:problems",
    widths=(32, 64, 128, 256, 512),
)


@dataclass(frozen=True)
class FwpkmOutput:
    """retrieved `[batch, time, d_v]`; slots and weights `[batch, time, heads, top_k]`, head-major; state or None."""

    retrieved: Tensor
    slots: Tensor
    weights: Tensor
    state: FwpkmState | None


def fwpkm(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    keys: Tensor,
    values: Tensor,
    *,
    top_k: int,
    chunk_size: int,
    lookahead: int = 1,
    score: Score = "idw",
    temperature: float = 1.0,
    learning_rate: float = 1.0,
    address_weight: float = 1.0,
    key_objective: KeyObjective = "address",
    boundary: Boundary = "carry",
    scope: Scope = "sequence",
    nonlinearity: Nonlinearity = "softmax",
    weight_decay: float = 0.0,
    clip: float | None = None,
    key_gradient: KeyGradient = "exact",
    state: FwpkmState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> FwpkmOutput:
    """Read a product-key memory token by token, and rewrite it chunk by chunk (arXiv 2601.00671).

    queries `[batch, time, heads, d_k]`; targets `[batch, time, d_v]`, what the memory should have held for the query
    `lookahead` tokens earlier; gates `[batch, time]`, the weight of each pair (None: all ones);
    keys `[heads, 2, n_subkeys, d_k/2]` and values `[n_subkeys**2, d_v]`, the memory before the sequence.

    score: `idw`, `-log(1e-3 + ||q - k||^2)`, or `dot`. The best `top_k` sums of both halves' best `top_k` sub-scores
    are read, divided by `temperature`. nonlinearity: what makes them weights: `softmax` over all heads' scores, or,
    element by element and without normalisation, `silu` (x * sigmoid(x)) or `relu` (max(x, 0)); a negative weight reads
    and writes with the other sign, and a token whose weights are all 0 neither reads nor writes, but counts.

    Every `chunk_size` tokens the memory takes one gradient step of `learning_rate`: the values on the squared error,
    each row's gradient averaged over its accesses and multiplied by `heads * top_k`; the keys on `key_objective`:
    `address` (minus the entropy of each codebook's use, times `address_weight`), `memory` (half the squared error,
    weighted by the gates, its mean over tokens and features), `both` (their sum) or `none`.
    clip: the gradient of a row, averaged and scaled so, is multiplied by `min(1, clip / its 2-norm)` before the step.
    weight_decay: at an update, each row that it accesses first loses the share `learning_rate * weight_decay` of
    itself (decoupled from the gradient and its clipping); rows that are not accessed stay as they are, so that the cost
    of an update does not depend on the size of the table. Training then keeps copies of the accessed rows.
    key_gradient: `exact` differentiates through the step of the keys to second order; `first_order` takes the step for
    a constant, so that gradients reach the initial keys through what is read only.
    boundary: `carry` writes a pair in the chunk where its target arrives, `drop` leaves out pairs across an edge.
    scope: `sequence` gives every row its own memory, `batch` lets the rows share one.
    state: of an earlier call, with the same options; only `chunk_size` may be another one where `finish` ended a text.
    Differentiable in every tensor. Fast weights are at least float32.

    Raises `ValueError` for sizes that do not fit, an option out of range, or a state made with other options.
    """
    options = FwpkmOptions(
        top_k,
        chunk_size,
        lookahead,
        score,
        temperature,
        learning_rate,
        address_weight,
        key_objective,
        boundary,
        scope,
        nonlinearity,
        weight_decay,
        clip,
        key_gradient,
    )
    if gates is None:
        gates = targets.new_ones(targets.shape[:2])
    _check_sizes(queries, targets, gates, keys, values, options)
    if queries.shape[1] == 0:
        raise ValueError(f"fwpkm needs at least one token, got queries of shape {list(queries.shape)}")
    problem = _problem(queries, targets, gates, keys, values, options, state, wants_memory=return_state)
    # Which rows are touched depends on the data: there is nothing to compile. Disabling is left to compiled callers,
    # because it imports the whole compiler.
    solve = compiler.disable(_solve) if compiler.is_compiling() else _solve
    solution = solve(problem, backend)
    new_state = _state_after(problem, solution, state) if return_state else None
    return FwpkmOutput(solution.retrieved, solution.slots, solution.weights, new_state)


def finish(state: FwpkmState, keys: Tensor, values: Tensor, *, backend: str = "auto", **options: Any) -> FwpkmState:
    """Let the unfinished chunk rewrite the memory, as at the end of a text; position 0 of the next text follows.

    keys, values, options: as `fwpkm` was called with. Pairs whose target never came are not written.
    """
    settings = FwpkmOptions(**options)
    queries, targets, gates = (buffer.values[:, :0] for buffer in state.tokens)
    _check_sizes(queries, targets, gates, keys, values, settings)
    problem = _problem(queries, targets, gates, keys, values, settings, state, finish=True)
    if problem.segments:
        state = _state_after(problem, _solve(problem, backend), state)
    return replace(state, position=0, **state.tokens.keep_last(0)._asdict())


def _check_sizes(
    queries: Tensor, targets: Tensor, gates: Tensor, keys: Tensor, values: Tensor, options: FwpkmOptions
) -> None:
    if queries.ndim != 4 or keys.ndim != 4 or targets.ndim != 3 or values.ndim != 2:
        raise ValueError(
            "fwpkm expects queries [batch, time, heads, d_k], targets [batch, time, d_v], "
            "keys [heads, 2, n_subkeys, d_k/2] and values [n_subkeys**2, d_v], got shapes "
            f"{list(queries.shape)}, {list(targets.shape)}, {list(keys.shape)} and {list(values.shape)}"
        )
    batch, time, heads, d_k = queries.shape
    n_subkeys, d_v = keys.shape[2], values.shape[1]
    if keys.shape != (heads, 2, n_subkeys, d_k / 2):
        expected = f"[{heads}, 2, n_subkeys, {d_k / 2:g}]"
        raise ValueError(f"queries {list(queries.shape)} need keys of shape {expected}, got {list(keys.shape)}")
    if len(values) != n_subkeys**2:
        raise ValueError(f"{n_subkeys} sub-keys address {n_subkeys**2} slots, but values has {len(values)} rows")
    if targets.shape != (batch, time, d_v):
        raise ValueError(f"targets must have shape [{batch}, {time}, {d_v}], got {list(targets.shape)}")
    if gates.shape != (batch, time):
        raise ValueError(f"gates must have shape [{batch}, {time}], got {list(gates.shape)}")
    if options.top_k > n_subkeys:
        raise ValueError(f"top_k must not exceed n_subkeys, got {options.top_k} and {n_subkeys}")


def _problem(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor,
    keys: Tensor,
    values: Tensor,
    options: FwpkmOptions,
    state: FwpkmState | None,
    finish: bool = False,
    wants_memory: bool = True,
) -> Problem:
    """The call's tokens after those the state still holds, in the precision of the fast weights."""
    dtype = promote_types(values.dtype, float32)
    batch = queries.shape[0]
    memories = batch if options.scope == "sequence" else 1
    new = queries.to(dtype), targets.to(dtype), gates.to(dtype)
    all_keys = keys.to(dtype).expand(memories, *keys.shape)
    if state is None:
        return Problem(Tokens.of(*new), 0, 0, Memory(all_keys, (), values), options, finish, wants_memory)
    _check_state(state, batch, keys, values, options)
    memory = Memory(all_keys if state.keys is None else state.keys, state.log, values)
    tokens, origin = state.tokens.append(*new), state.position - state.queries.length
    return Problem(tokens, origin, state.position, memory, options, finish, wants_memory)


def _check_state(state: FwpkmState, batch: int, keys: Tensor, values: Tensor, options: FwpkmOptions) -> None:
    if not isinstance(state, FwpkmState):
        raise ValueError(f"fwpkm expects an FwpkmState, got {type(state).__name__}")
    if state.batch != batch:
        raise ValueError(f"the state holds {state.batch} sequences but queries has {batch}")
    sizes = (*keys.shape[:3], keys.shape[3], values.shape[1])
    held = (state.queries.storage.shape[2], 2, round(state.n_slots**0.5), state.queries.storage.shape[3] // 2)
    if (*held, state.targets.storage.shape[2]) != sizes:
        raise ValueError(f"the state belongs to keys of shape {list(held)}, got {list(keys.shape)}, or another d_v")
    check_options(state, options)


def _solve(problem: Problem, backend: str) -> Solution:
    memory, tokens = problem.memory, (problem.queries, problem.targets, problem.gates)
    call = Call.of(
        memory.initial,
        *(memory.keys, *tokens),
        width=max(problem.queries.shape[3], memory.initial.shape[1]),
        tokens=problem.end - problem.position,
        variant=problem.options.key_objective,
    )
    run = OP.select(backend, problem.queries.device, call)
    with autocast(problem.queries.device.type, enabled=False):
        return run(problem)


def _state_after(problem: Problem, solution: Solution, before: FwpkmState | None) -> FwpkmState:
    options, memory = problem.options, solution.memory
    tokens = options.chunks.open_tokens(problem.tokens, problem.end, continued=before is not None)
    keys: Tensor | None = memory.keys
    if memory.keys is problem.memory.keys:  # not rewritten in this call
        keys = None if before is None else before.keys
    return FwpkmState(
        batch=problem.queries.shape[0],
        position=problem.end,
        settings=described(options),
        chunk_size=options.chunk_size,
        keys=keys,
        log=memory.log,
        **tokens._asdict(),
        n_slots=memory.n_slots,
        shared_memory=options.scope == "batch",
    )
