"""Ridge regression of all values so far on all keys so far, solved anew for every token's query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, autocast

from ...state import StateValue
from ..dispatch import Backend, Call, Op
from ..libraries import needs_fla
from .fla import refuses

OP = Op(
    __name__,
    Backend("chunked", "chunked:ridge_regression"),
    Backend(
        "fla",
        "fla:ridge_regression",
        needs_fla,
        trust="proven",
        refuses=refuses,
        libraries=("fla-core", "flash-linear-attention", "triton"),
    ),
    Backend("reference", "reference:ridge_regression", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "RidgeState", "Solver", "ridge_regression"]

Solver = Literal["conjugate_gradient", "chebyshev"]
"""How the linear systems are solved."""


@dataclass(frozen=True, eq=False)
class RidgeState(StateValue):
    """gram `[batch, heads, d_k, d_k]`, the decayed sum of beta k k^T; memory `[batch, heads, d_k, d_v]`, of beta k v^T;
    float32 at least."""

    gram: Tensor
    memory: Tensor


def ridge_regression(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    log_decay: Tensor,
    beta: Tensor,
    ridge: Tensor | float,
    mix: Tensor | None = None,
    solver: Solver = "conjugate_gradient",
    steps: int = 30,
    chunk_size: int = 64,
    state: RidgeState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, RidgeState | None]:
    """What the best linear map from keys to values, under a quadratic penalty, makes of each query. Per head,

        H_t = exp(log_decay_t) H_{t-1} + beta_t k_t k_t^T
        U_t = exp(log_decay_t) U_{t-1} + beta_t k_t v_t^T
        x_t = (H_t + R_t)^-1 q_t
        o_t = U_t^T (mix_t x_t + (1 - mix_t) q_t)

    ridge: a tensor `[heads, d_k]`, all > 0, is the diagonal of R (MesaNet, arXiv 2506.05233); a number r > 0
    adapts it to the memory, R_t = r ||H_t||_F I (Gated KalmaNet, arXiv 2511.21016).
    solver: `conjugate_gradient` takes `steps` steps at most, fewer where all residuals have come down to rounding; the
    `reference` solves exactly instead, and gradients are those of the exact solution. `chebyshev` takes the first step
    along q and `steps` accelerated ones for a spectrum between the smallest ridge and the largest plus ||H_t||_F, and
    gradients are those of these very steps.
    queries, keys `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`; log_decay, <= 0, beta, >= 0, and mix
    `[batch, time, heads]`; mix None: all ones. chunk_size: tokens computed at once; changes the speed only.
    backend: `chunked` (all tokens of a chunk together), `fla` (flash-linear-attention's kernels, CUDA: conjugate
    gradients with a ridge per head and feature, keys and values of one size), `reference`, or `auto`.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, and the state or None.
    Raises `ValueError` if sizes do not fit together, or for a ridge, a solver or a number of steps that is none.
    """
    _check(queries, keys, values, {"log_decay": log_decay, "beta": beta, "mix": mix}, state)
    _check_solution(ridge, solver, steps, chunk_size, tuple(keys.shape[2:]))
    given = {
        "adaptive_ridge": not isinstance(ridge, Tensor),
        "chebyshev": solver == "chebyshev",
        "mix": mix is not None,
        "oblong": values.shape[3] != keys.shape[3],
    }
    learned = (queries, keys, log_decay, beta, mix, ridge if isinstance(ridge, Tensor) else None)
    held = () if state is None else (state.gram, state.memory)
    width, variant = max(keys.shape[3], values.shape[3]), "+".join(name for name, is_given in given.items() if is_given)
    call = Call.of(values, *learned, *held, width=width, tokens=values.shape[1], variant=variant)
    run = OP.select(backend, values.device, call)
    # autocast would turn the products that build the memory into low precision
    with autocast(values.device.type, enabled=False):
        output, after = run(queries, keys, values, log_decay, beta, ridge, mix, solver, steps, chunk_size, state)
    return output.to(values.dtype), after if return_state else None


def _check(
    queries: Tensor, keys: Tensor, values: Tensor, gates: dict[str, Tensor | None], state: RidgeState | None
) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, heads, d_k = keys.shape
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {[batch, time, heads]} + [d_v], got {list(values.shape)}")
    for name, gate in gates.items():
        if gate is not None and gate.shape != keys.shape[:3]:
            raise ValueError(f"{name} must be {[batch, time, heads]} to fit the keys, got {list(gate.shape)}")
    if state is not None:
        expected = {"gram": [batch, heads, d_k, d_k], "memory": [batch, heads, d_k, values.shape[3]]}
        for name, shape in expected.items():
            found = list(getattr(state, name).shape)
            if found != shape:
                raise ValueError(f"state.{name} must be {shape}, got {found}")


def _check_solution(
    ridge: Tensor | float, solver: str, steps: int, chunk_size: int, key_shape: tuple[int, ...]
) -> None:
    if isinstance(ridge, Tensor):
        if ridge.shape != key_shape:
            raise ValueError(f"ridge must be [heads, d_k] = {list(key_shape)} or a number, got {list(ridge.shape)}")
    elif not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {', '.join(get_args(Solver))}, got {solver!r}")
    if steps < 1 or chunk_size < 1:
        raise ValueError(f"steps and chunk_size must be at least 1, got {steps} and {chunk_size}")
