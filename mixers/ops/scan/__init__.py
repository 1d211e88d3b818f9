"""A linear recurrence, element by element: every channel of its own decays and is written to."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Call, Op
from ..libraries import needs_fla
from ..verdicts import LEAST_CLASS
from .fla import POSITIVE, refuses

OP = Op(
    __name__,
    Backend("chunked", "chunked:linear_scan"),
    Backend(
        "fla",
        "fla:linear_scan",
        needs_fla,
        trust="proven",
        refuses=refuses,
        libraries=("fla-core", "flash-linear-attention", "triton"),
    ),
    Backend("reference", "reference:linear_scan", trust="never"),
    problems="problems:problems",
    widths=(LEAST_CLASS,),
)

__all__ = ["OP", "linear_scan"]


def linear_scan(
    decay: Tensor,
    writes: Tensor,
    *,
    positive: bool = False,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Every `h_t = decay_t * h_{t-1} + writes_t`, element by element, from `h_0 = state` (None: zeros).

    decay, writes `[batch, time, ...]` of the same shape, real or complex; the absolute values of decays are meant to be
    at most 1, and may be 0. A decay that is the same at every time may be given as an expanded view.
    positive: whether decays are real and never negative, which some kernels need.
    state `[batch, ...]`: what an earlier call returned.
    backend: `chunked` (some dozen steps over all segments at once; has all derivatives), `fla`
    (flash-linear-attention's kernel of HGRN, CUDA; where decays are `positive`), `reference`, or `auto`.
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
    precision = torch.promote_types(torch.promote_types(decay.dtype, writes.dtype), torch.float32)
    # scans know no heads: one class of widths stands for all
    variant = POSITIVE if positive else ""
    call = Call.of(writes, decay, state, width=1, tokens=writes.shape[1], variant=variant)
    run = OP.select(backend, writes.device, call._replace(dtype=precision))
    with autocast(writes.device.type, enabled=False):
        start = torch.zeros_like(writes[:, 0], dtype=precision) if state is None else state.to(precision)
        states = run(decay.to(precision), writes.to(precision), start)
    last = states[:, -1].clone() if return_state else None  # a copy: it must not keep all the others alive
    return states if precision.is_complex else states.to(writes.dtype), last
