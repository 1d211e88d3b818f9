"""A linear recurrence, element by element: every channel of its own decays and is written to."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("chunked", "chunked:linear_scan"),
    Backend("reference", "reference:linear_scan", trust="never"),
)

__all__ = ["OP", "linear_scan"]


def linear_scan(
    decay: Tensor,
    writes: Tensor,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Every `h_t = decay_t * h_{t-1} + writes_t`, element by element, from `h_0 = state` (None: zeros).

    decay, writes `[batch, time, ...]` of the same shape, real or complex; the absolute values of decays are meant to be
    at most 1, and may be 0. A decay that is the same at every time may be given as an expanded view.
    state `[batch, ...]`: what an earlier call returned.
    backend: `chunked` (some dozen steps over all segments at once; has all derivatives), `reference`, or `auto`.
    Returns `h [batch, time, ...]` in the dtype of `writes` (complex if the decay is), and the last of them, of float32
    at least, or None.
    Raises `ValueError` if sizes do not fit together.
    """
    if writes.ndim < 2 or 0 in writes.shape:
        raise ValueError(f"writes must be [batch, time, ...], none of them 0, got {list(writes.shape)}")
    if decay.shape != writes.shape:
        raise ValueError(f"decay must have the shape of writes, {list(writes.shape)}, got {list(decay.shape)}")
    if state is not None and state.shape != writes[:, 0].shape:
        raise ValueError(f"state must be [batch, ...] = {list(writes[:, 0].shape)}, got {list(state.shape)}")
    run = OP.select(backend, writes.device)
    precision = torch.promote_types(torch.promote_types(decay.dtype, writes.dtype), torch.float32)
    with autocast(writes.device.type, enabled=False):
        start = torch.zeros_like(writes[:, 0], dtype=precision) if state is None else state.to(precision)
        states = run(decay.to(precision), writes.to(precision), start)
    last = states[:, -1].clone() if return_state else None  # a copy: it must not keep all the others alive
    return states if precision.is_complex else states.to(writes.dtype), last
