"""The gated delta rule: a linear recurrent memory that decays, erases what a key held, and writes the new value."""

from __future__ import annotations

from torch import Tensor, autocast

from ..dispatch import Backend, Op, needs_cuda_package

OP = Op(
    __name__,
    Backend("chunked", "chunked:gated_delta_rule"),
    Backend("fla", "fla:gated_delta_rule", needs_cuda_package("fla"), automatic=False),
    Backend("reference", "reference:gated_delta_rule", automatic=False),
)

__all__ = ["OP", "gated_delta_rule"]


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Read a matrix memory `S [d_k, d_v]` per head with each query, right after the token's own write.

    Yang, Kautz, Hatamizadeh 2024 (arXiv 2412.06464, eq. 10), here with S transposed:

        S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = scale * S_t^T q_t

    queries, keys `[batch, time, heads, d_k]`; keys are taken as they are: normalise them to length 1 before.
    values `[batch, time, heads, d_v]`. log_decay `[batch, time, heads]`: log of alpha, finite and at most 0.
    beta `[batch, time, heads]`: how much of the old value to replace, 0 to 1.
    scale: of the queries; None means `d_k ** -0.5`. chunk_size: tokens computed at once; changes the speed only.
    state `[batch, heads, d_k, d_v]`: what an earlier call returned; None is an empty memory.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, log_decay, beta, chunk_size, state)
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the state into low precision
    with autocast(values.device.type, enabled=False):
        return run(queries, keys, values, log_decay, beta, scale, chunk_size, state, return_state)


def _check(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    chunk_size: int,
    state: Tensor | None,
) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, heads, d_k = keys.shape
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {[batch, time, heads]} + [d_v], got {list(values.shape)}")
    for name, tensor in (("log_decay", log_decay), ("beta", beta)):
        if tensor.shape != keys.shape[:3]:
            raise ValueError(f"{name} must be [batch, time, heads] = {[batch, time, heads]}, got {list(tensor.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    expected = (batch, heads, d_k, values.shape[3])
    if state is not None and state.shape != expected:
        raise ValueError(f"state must be [batch, heads, d_k, d_v] = {list(expected)}, got {list(state.shape)}")
