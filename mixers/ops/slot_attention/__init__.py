"""Softmax attention to a fixed number of slots, whose keys and values are decaying memories."""

from __future__ import annotations

from torch import Tensor, autocast

from ..dispatch import Backend, Call, Op
from ..libraries import needs_fla
from .fla import UNALIGNED, refuses

OP = Op(
    __name__,
    Backend("chunked", "chunked:slot_attention"),
    Backend(
        "fla",
        "fla:slot_attention",
        needs_fla,
        trust="proven",
        refuses=refuses,
        libraries=("fla-core", "flash-linear-attention", "triton"),
    ),
    Backend("reference", "reference:slot_attention", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "slot_attention"]

SlotState = tuple[Tensor, Tensor]


def slot_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    writes: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
    state: SlotState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, SlotState | None]:
    """Read slots by a softmax over them, after every token has been written to each as far as `writes` says
    (Zhang et al. 2024, arXiv 2409.07146; eq. 18 of the Raven paper is the same with sparse writes). Per head:

        K_t = D_t K_{t-1} + w_t k_t^T,   V_t = D_t V_{t-1} + w_t v_t^T,   o_t = V_t^T softmax(scale * K_t q_t)

    with K `[slots, d_k]`, V `[slots, d_v]` and `D_t = diag(exp(log_decay_t))`.

    queries `[batch, time, q_heads, d_k]`, q_heads a multiple of heads: consecutive ones read the same slots.
    keys `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`, writes and log_decay
    `[batch, time, heads, slots]`; log_decay finite and at most 0.
    scale: of the scores; None means `d_k ** -0.5`. chunk_size: tokens computed at once; changes the speed only.
    state: `(K, V)`, `[batch, heads, slots, d_k]` and `[batch, heads, slots, d_v]`; None stands for zeros.
    backend: `chunked` (matrix products over chunks), `fla` (flash-linear-attention's kernels, CUDA), `reference`, or
    `auto`.
    Returns the output `[batch, time, q_heads, d_v]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, writes, log_decay, chunk_size)
    batch, _, heads, slots = writes.shape
    expected = [[batch, heads, slots, x.shape[3]] for x in (keys, values)]
    if state is not None and [list(s.shape) for s in state] != expected:
        raise ValueError(f"state must be tensors of shapes {expected}, got {[list(s.shape) for s in state]}")
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    inputs = (queries, keys, values, writes, log_decay)
    width = max(keys.shape[3], values.shape[3], slots)
    variant = UNALIGNED if slots % 8 else ""
    call = Call.of(values, *inputs, *(state or ()), width=width, tokens=values.shape[1], variant=variant)
    run = OP.select(backend, values.device, call)
    with autocast(values.device.type, enabled=False):
        y, state = run(*inputs, scale, chunk_size, state)
    return y.to(values.dtype), state if return_state else None


def _check(queries: Tensor, keys: Tensor, values: Tensor, writes: Tensor, log_decay: Tensor, chunk_size: int) -> None:
    if keys.ndim != 4 or 0 in keys.shape:
        raise ValueError(f"keys must be [batch, time, heads, d_k], none of them 0, got {list(keys.shape)}")
    batch, time, heads, d_k = keys.shape
    fits = queries.ndim == 4 and (*queries.shape[:2], queries.shape[3]) == (batch, time, d_k)
    if not fits or not queries.shape[2] or queries.shape[2] % heads:
        expected = f"[batch = {batch}, time = {time}, a multiple of heads = {heads}, d_k = {d_k}]"
        raise ValueError(f"queries must be {expected}, got {list(queries.shape)}")
    for name, tensor in (("values", values), ("writes", writes)):
        if tensor.ndim != 4 or tensor.shape[:3] != keys.shape[:3] or tensor.shape[3] == 0:
            last = "d_v" if name == "values" else "slots"
            raise ValueError(f"{name} must be {[batch, time, heads]} + [{last}], got {list(tensor.shape)}")
    if log_decay.shape != writes.shape:
        raise ValueError(f"log_decay must have the shape of writes, {list(writes.shape)}, got {list(log_decay.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
