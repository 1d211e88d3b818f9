"""Adapter to Mamba's own kernels (the package mamba-ssm), version 2.2 and later.

Written from its source (2.3); no GPU has run it here. Its kernel over time reads float32 or 16 bit, all of one dtype,
and sums in float32. It starts from zeros: what a state adds is computed apart. It lets no gradient through its last
state: `refuses` says so. One token is its kernel for decoding, which has no gradients and overwrites the state it is
given, here a copy.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ..dispatch import Call, needs_cuda_package
from ..libraries import call_library

LARGEST_STATE = 256
PIECE = 2**24  # numbers of a state's traces held at once
CARRIED = "carried"  # the variant of a call that starts from a state, or whose last state may get a gradient


def why_not(device: torch.device) -> str | None:
    """For `Backend.why_not`."""
    reason = needs_cuda_package("mamba_ssm")(device)
    if reason is None and importlib.util.find_spec("selective_scan_cuda") is None:
        return "mamba-ssm was installed without its CUDA kernel selective_scan_cuda (MAMBA_KEEP_CUDA_BUILD=TRUE)"
    return reason


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`; the width of a call is the size of a channel's state."""
    if call.dtype == torch.float64:
        return "its kernels compute in float32, and the values are of float64"
    if call.width > LARGEST_STATE:
        return f"its kernels hold {LARGEST_STATE} numbers per channel at most, got {call.width}"
    if call.variant == CARRIED and call.gradient:
        return "its kernels let no gradient through states"
    return None


def selective_scan(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    if state is not None and values.shape[1] == 1:
        return _one_token(values, step, A, B, C, state, return_state)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    # one dtype for all; in 16 bit the step would cost every decay its accuracy
    dtype = torch.promote_types(values.dtype, step.dtype)
    # [batch, features, time], time innermost
    inputs = [x.to(dtype).mT.contiguous() for x in (values, step, B, C)]
    y, last = call_library(selective_scan_fn, *inputs[:2], A.float(), *inputs[2:], return_last_state=True)
    y, last = y.mT, last.mT
    if state is not None:
        trace, kept = _trace(step.float(), A.float(), C.float(), state.float())
        y, last = y + trace, last + kept
    return y, last.contiguous() if return_state else None


def _trace(step: Tensor, A: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What a state adds to the outputs, and what is left of it: by itself it is h_t = exp(A (dt_1 + ... + dt_t)) h_0.

    In pieces of time, so that its numbers for all tokens need not be held at once.
    """
    sums = step.cumsum(1)
    tokens = max(1, PIECE // state.numel())
    read = [
        ((s[:, :, None] * A.T).exp() * state[:, None] * c[..., None]).sum(2)
        for s, c in zip(sums.split(tokens, dim=1), C.split(tokens, dim=1))
    ]
    return torch.cat(read, dim=1), (sums[:, -1, None] * A.T).exp() * state


def _one_token(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    after = state.to(torch.float32, copy=True)
    x, dt, b, c = values[:, 0], step[:, 0], B[:, 0], C[:, 0]
    zeros = dt.new_zeros(dt.shape[1])  # it fails where no skip or no bias is given
    y = call_library(selective_state_update, after.mT, x, dt, A.float(), b, c, D=zeros, dt_bias=zeros)
    return y[:, None], after if return_state else None
