"""A diagonal state space model that is the same at every time: linear recurrences read by a fixed vector."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("chunked", "chunked:diagonal_ssm"),
    Backend("reference", "reference:diagonal_ssm", trust="never"),
)

__all__ = ["OP", "diagonal_ssm"]


def diagonal_ssm(
    values: Tensor,
    transition: Tensor,
    readout: Tensor,
    *,
    chunk_size: int = 64,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S4D after discretisation (Gu et al. 2022, arXiv 2206.11893, section 3), per channel d, with `d_state` numbers:

        h_t = transition * h_{t-1} + x_t,  y_t = Re(readout . h_t)

    The readout holds the products of input and output vector, which is all that matters of the two.
    values `[batch, time, channels]`, real; transition, readout `[channels, d_state]`, both real or both complex, the
    absolute values of transition at most 1. Of a pair of conjugates only one is given, with twice its readout.
    chunk_size: tokens computed at once; changes the speed only.
    state `[batch, channels, d_state]`, of the dtype of `transition`: what an earlier call returned; None: zeros.
    backend: `chunked` (matrix products within chunks, a scan over chunks), `reference`, or `auto`.
    Returns y `[batch, time, channels]` in the dtype of `values`, and the state (of float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"values must be [batch, time, channels], none of them 0, got {list(values.shape)}")
    batch, _, channels = values.shape
    if transition.ndim != 2 or len(transition) != channels or 0 in transition.shape:
        raise ValueError(f"transition must be [channels = {channels}, d_state >= 1], got {list(transition.shape)}")
    if readout.shape != transition.shape or readout.is_complex() != transition.is_complex():
        given = f"{readout.dtype} {list(readout.shape)}"
        raise ValueError(f"readout must be like transition, {transition.dtype} {list(transition.shape)}, got {given}")
    if state is not None and state.shape != (batch, *transition.shape):
        raise ValueError(f"state must be {[batch, *transition.shape]}, got {list(state.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    run = OP.select(backend, values.device)
    real = torch.promote_types(values.dtype, torch.float32)
    precision = torch.promote_types(transition.dtype, real)
    with autocast(values.device.type, enabled=False):
        start = transition.new_zeros(batch, *transition.shape) if state is None else state
        a, c, start = (x.to(precision) for x in (transition, readout, start))
        y, end = run(values.to(real), a, c, chunk_size, start)
    return y.to(values.dtype), end if return_state else None
