"""Large-chunk test-time training: SwiGLU fast weights, rewritten once a chunk and brought back to their length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, autocast

from ...state import StateValue
from ..dispatch import Backend, Op

OP = Op(__name__, Backend("chunked", "chunked:lact"), Backend("reference", "reference:lact", trust="never"))

__all__ = ["OP", "LactState", "Weights", "lact"]

Weights = tuple[Tensor, ...]
"""gate `[heads, d_hidden, d_in]`, down `[heads, d_out, d_hidden]`, up `[heads, d_hidden, d_in]`: the w0, w1, w2 of the
released code. As fast weights each has the sequence in front."""


@dataclass(frozen=True, eq=False)
class LactState(StateValue):
    """weights: those that are read now. gathered: the sum of `step size * gradient` over the unfinished chunk, zero at
    its edge. velocity: the last update before it was made orthogonal, None without momentum. persistence
    `[batch, heads]`: sum of the momenta over the unfinished chunk, or None. position: tokens read."""

    weights: Weights
    gathered: Weights
    velocity: Weights | None
    persistence: Tensor | None
    position: int


def lact(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    *,
    weights: Sequence[Tensor],
    momentum: Tensor | None = None,
    muon: bool = False,
    chunk_size: int = 512,
    state: LactState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, LactState | None]:
    """LaCT (Zhang et al. 2025, arXiv 2505.23884): `f(x) = down (silu(gate x) * (up x))` per head learns keys -> values.

    Tokens of a chunk all read the weights from before it (apply, then update: causal). When it is complete, each matrix
    W takes a step along the gradient of the tokens' dot products with their targets, and its rows get back the lengths
    they had at the start of the sequence:

        G = sum_t step_sizes_t * d/dW (f(k_t) . v_t)  +  mean_t(momentum_t) * (G of the chunk before)
        W <- rows of (W + G), or of (W + orthogonalised G) with `muon`, scaled to the lengths of the initial rows

    queries, keys `[batch, time, heads, d_in]`, values `[batch, time, heads, d_out]`; step_sizes
    `[batch, time, heads, 3]`, of gate, down and up; momentum `[batch, time, heads]`, in 0..1, None for none; weights:
    see `Weights`, with which every sequence begins. muon: five Newton-Schulz steps, with the coefficients of the
    released code, at the precision of the weights instead of bfloat16.
    Gradients flow through all of it. chunk_size: chunks end at multiples of it, and the result depends on it.
    Returns the output `[batch, time, heads, d_out]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, step_sizes, weights, momentum)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if state is not None:
        _check_state(state, len(keys), weights, momentum)
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the fast weights into low precision
    with autocast(values.device.type, enabled=False):
        output, after = run(queries, keys, values, step_sizes, tuple(weights), momentum, muon, chunk_size, state)
    return output.to(values.dtype), after if return_state else None


def _check(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    weights: Sequence[Tensor],
    momentum: Tensor | None,
) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_in], none of them 0, got {list(keys.shape)}")
    front, d_in = list(keys.shape[:3]), keys.shape[3]
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or list(values.shape[:3]) != front or values.shape[3] == 0:
        raise ValueError(f"values must be {front} + [d_out], got {list(values.shape)}")
    if list(step_sizes.shape) != [*front, 3]:
        raise ValueError(f"step_sizes must be {[*front, 3]}, got {list(step_sizes.shape)}")
    if momentum is not None and list(momentum.shape) != front:
        raise ValueError(f"momentum must be {front}, got {list(momentum.shape)}")
    if len(weights) != 3 or weights[0].ndim != 3:
        raise ValueError(f"weights must be three matrices per head, got shapes {[list(w.shape) for w in weights]}")
    heads, d_hidden, d_out = front[2], weights[0].shape[1], values.shape[3]
    expected = [[heads, d_hidden, d_in], [heads, d_out, d_hidden], [heads, d_hidden, d_in]]
    if [list(w.shape) for w in weights] != expected:
        raise ValueError(f"weights must have the shapes {expected}, got {[list(w.shape) for w in weights]}")


def _check_state(state: LactState, batch: int, weights: Sequence[Tensor], momentum: Tensor | None) -> None:
    expected, found = [[batch, *w.shape] for w in weights], [list(w.shape) for w in state.weights]
    if found != expected:
        raise ValueError(f"state.weights must have the shapes {expected}, got {found}")
    if (state.velocity is None) != (momentum is None):
        raise ValueError(f"the state was made {'without' if momentum is not None else 'with'} momentum")
