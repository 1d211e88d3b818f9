"""The matrix memory of xLSTM: exponential input gates, kept within range by a running maximum of their logarithms."""

from __future__ import annotations

from torch import Tensor, autocast

from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("chunked", "chunked:mlstm"),
    Backend("reference", "reference:mlstm", trust="never"),
)

__all__ = ["OP", "mlstm"]

EPSILON = 1e-6  # beside the stabilised normaliser, as in the released implementations

State = tuple[Tensor, Tensor]


def mlstm(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_input: Tensor,
    log_forget: Tensor,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
    state: State | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State | None]:
    """Read a matrix memory per head with each query, right after the token's own write.

    Beck et al. 2024 (arXiv 2405.04517, section 2.3 and appendix A), with i = exp(log_input) and f = exp(log_forget):

        C_t = f_t C_{t-1} + i_t k_t v_t^T,  n_t = f_t n_{t-1} + i_t k_t,  o_t = C_t^T q_t / max(|n_t . q_t|, 1)

    with queries multiplied by `scale`. C and n are held divided by exp(m_t), m_t = max(log f_t + m_{t-1}, log i_t);
    this changes the output only through EPSILON, which is added to the normaliser once it is divided by exp(m_t).
    queries, keys `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`.
    log_input `[batch, time, heads]`: any finite number. log_forget `[batch, time, heads]`: finite and at most 0.
    scale: None means `d_k ** -0.5`. chunk_size: tokens computed at once; changes the speed only.
    state: what an earlier call returned; None is an empty memory.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`; and the state or None: C with n as its last
    column, `[batch, heads, d_k, d_v + 1]`, and m `[batch, heads]`, in float32 at least.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, log_input, log_forget, chunk_size, state)
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the state into low precision
    with autocast(values.device.type, enabled=False):
        output, state = run(queries, keys, values, log_input, log_forget, scale, chunk_size, state)
    return output.to(values.dtype), state if return_state else None


def _check(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_input: Tensor,
    log_forget: Tensor,
    chunk_size: int,
    state: State | None,
) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, heads, d_k = keys.shape
    if queries.shape != keys.shape:
        raise ValueError(f"queries must have the shape of keys, {list(keys.shape)}, got {list(queries.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {[batch, time, heads]} + [d_v], got {list(values.shape)}")
    for name, tensor in (("log_input", log_input), ("log_forget", log_forget)):
        if tensor.shape != keys.shape[:3]:
            raise ValueError(f"{name} must be [batch, time, heads] = {[batch, time, heads]}, got {list(tensor.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    expected = [[batch, heads, d_k, values.shape[3] + 1], [batch, heads]]
    if state is not None and [list(tensor.shape) for tensor in state] != expected:
        given = [list(tensor.shape) for tensor in state]
        raise ValueError(f"state must be [batch, heads, d_k, d_v + 1] and [batch, heads] = {expected}, got {given}")
