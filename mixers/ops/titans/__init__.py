"""Titans' long-term memory: an MLP that is trained on every token, with momentum and forgetting."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, autocast

from ...state import StateValue
from ..dispatch import Backend, Op
from ..inner_model import Layers, shapes

OP = Op(__name__, Backend("chunked", "chunked:titans"), Backend("reference", "reference:titans", trust="never"))

__all__ = ["OP", "TitansState", "titans"]


@dataclass(frozen=True, eq=False)
class TitansState(StateValue):
    """anchor: the weights at which the gradients of the current chunk are taken; memory: the weights that are read now;
    momentum: the last step but for its sign. Each as `weights` of `titans`, batch first. position: tokens read."""

    anchor: Layers
    memory: Layers
    momentum: Layers
    position: int


def titans(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    *,
    log_decay: Tensor,
    log_momentum: Tensor,
    weights: Layers,
    chunk_size: int = 64,
    state: TitansState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, TitansState | None]:
    """The neural long-term memory of Titans (Behrouz et al. 2025, arXiv 2501.00663, eq. 8 to 15). Per head,

        S_t = exp(log_momentum_t) S_{t-1} - step_sizes_t * gradient of ||M(k_t) - v_t||^2 at the weights A
        M_t = exp(log_decay_t) M_{t-1} + S_t
        output_t = M_t(q_t)

    where A are the weights at the end of the chunk before (section 3.2), and M is a stack of linear layers without
    biases, with GELU between them. Gradients flow through all of it.

    queries, keys `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`; step_sizes, >= 0, log_decay and
    log_momentum, <= 0, `[batch, time, heads]`. weights: one tuple `([heads, d_in, d_out],)` for each layer, from d_k to
    d_v, with which every sequence begins. chunk_size: chunks end at multiples of it, and the result depends on it.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, weights, chunk_size)
    gates = {"step_sizes": step_sizes, "log_decay": log_decay, "log_momentum": log_momentum}
    for name, gate in gates.items():
        if gate.shape != keys.shape[:3]:
            raise ValueError(f"{name} must be {list(keys.shape[:3])} to fit the keys, got {list(gate.shape)}")
    if state is not None:
        expected = [[len(keys), *shape] for shape in shapes(weights)]
        if shapes(state.memory) != expected:
            raise ValueError(f"the state must hold weights of shapes {expected}, got {shapes(state.memory)}")
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the memory into low precision
    with autocast(values.device.type, enabled=False):
        output, after = run(queries, keys, values, **gates, weights=weights, chunk_size=chunk_size, state=state)
    return output.to(values.dtype), after if return_state else None


def _check(queries: Tensor, keys: Tensor, values: Tensor, weights: Layers, chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {list(keys.shape[:3])} + [d_v], got {list(values.shape)}")
    found = shapes(weights)
    widths = [keys.shape[3], *(shape[-1] for shape in found)]
    expected = [[keys.shape[2], d_in, d_out] for d_in, d_out in itertools.pairwise(widths)]
    if not found or any(len(layer) != 1 for layer in weights) or found != expected or widths[-1] != values.shape[3]:
        raise ValueError(
            f"weights must be layers of one matrix [heads, d_in, d_out] each, from d_k {keys.shape[3]} to d_v "
            f"{values.shape[3]} for {keys.shape[2]} heads, got {found}"
        )
