"""Adapter to the package causal-conv1d, version 1.4 and later.

Written from its source (1.6); no GPU has run it here. Its kernels sum in float32 and take weights of any precision.
With a state they want channels innermost, a multiple of 8 of them, and strides that are: channels are filled up where
they are not. One token without gradients is its kernel for decoding, which overwrites the state it is given, a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import Call, needs_cuda_package, wants_gradient
from ..libraries import call_library

MULTIPLE = 8

why_not = needs_cuda_package("causal_conv1d")


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`; the width of a call is the number of tokens that the convolution sees."""
    if call.dtype == torch.float64:
        return "its kernels compute in float32, and x is of float64"
    if not 2 <= call.width <= 4:
        return f"its kernels see 2 to 4 tokens, got a size of {call.width}"
    return None


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    import causal_conv1d

    gradient = wants_gradient(x, weight, bias, state)
    channels, missing = x.shape[2], -x.shape[2] % MULTIPLE
    bias = None if bias is None else bias.to(weight.dtype)
    if missing:
        x, state, weight = F.pad(x, (0, missing)), F.pad(state, (0, missing)), F.pad(weight, (0, 0, 0, missing))
        bias = None if bias is None else F.pad(bias, (0, missing))
    if x.shape[1] == 1 and not gradient:
        after = state.clone(memory_format=torch.contiguous_format)
        y = call_library(causal_conv1d.causal_conv1d_update, x[:, 0], after.mT, weight, bias, activation)[:, None]
    else:
        x = x if _aligned(x) else x.contiguous()
        start = state.contiguous().mT
        y = call_library(
            causal_conv1d.causal_conv1d_fn, x.mT, weight, bias, initial_states=start, activation=activation
        ).mT
        after = _last(x, state)
    return (y[..., :channels], after[..., :channels].contiguous()) if missing else (y, after)


def _last(x: Tensor, state: Tensor) -> Tensor:
    """The last inputs, as many as a state holds, as a copy."""
    kept = state.shape[1]
    return x[:, -kept:].clone() if x.shape[1] >= kept else torch.cat([state[:, x.shape[1] :], x], dim=1)


def _aligned(x: Tensor) -> bool:
    strides = (x.stride(0), x.stride(1), x.storage_offset())
    return x.stride(2) == 1 and x.stride(1) > 1 and not any(number % MULTIPLE for number in strides)
