"""Linear attention: the softmax is replaced by a product of features, so that the past fits in one matrix per head."""

from __future__ import annotations

from torch import Tensor, autocast
from torch.nn import functional as F

from ..dispatch import Backend, Op, needs_cuda_package

OP = Op(
    __name__,
    Backend("chunked", "chunked:linear_attention"),
    Backend("fla", "fla:linear_attention", needs_cuda_package("fla"), automatic=False),
    Backend("reference", "reference:linear_attention", automatic=False),
)

__all__ = ["OP", "linear_attention"]

EPSILON = 1e-10  # makes 0 / 0 a 0 where all features underflow


def linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    normaliser: bool,
    chunk_size: int = 64,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal linear attention over queries and keys that are features already.

    Katharopoulos et al. 2020 (arXiv 2006.16236, eq. 9), per head, without any scaling of the queries:

        S_t = S_{t-1} + k_t v_t^T,  z_t = z_{t-1} + k_t,  o_t = S_t^T q_t / (z_t . q_t)

    normaliser: divide by `z_t . q_t`, which is meant for features whose products are positive; else `o_t = S_t^T q_t`.
    queries, keys `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`.
    chunk_size: tokens computed at once; changes the speed only.
    state `[batch, heads, d_k, d_v]`, with the normaliser `[batch, heads, d_k, d_v + 1]`, z being its last column: what
    an earlier call returned; None is an empty memory.
    backend: `chunked`, `fla` (CUDA, flash-linear-attention), `reference`, or `auto`.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, heads, d_k = keys.shape
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {[batch, time, heads]} + [d_v], got {list(values.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    columns = values.shape[3] + normaliser
    if state is not None and state.shape != (batch, heads, d_k, columns):
        expected = f"[batch, heads, d_k, d_v{' + 1' * normaliser}] = {[batch, heads, d_k, columns]}"
        raise ValueError(f"state must be {expected} with normaliser={normaliser}, got {list(state.shape)}")
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the state into low precision
    with autocast(values.device.type, enabled=False):
        if normaliser:  # z accumulates like a value that is always 1
            values = F.pad(values, (0, 1), value=1.0)
        output, state = run(queries, keys, values, chunk_size, state, return_state)
        if normaliser:
            output = output[..., :-1] / (output[..., -1:] + EPSILON)
    return output.to(values.dtype), state
