"""Adapter to flash-linear-attention's scan of HGRN (the package fla-core, 0.6 and later), in float32.

It takes logarithms of decays, so those must be known not to be negative; and it gives neither its first nor its last
state a gradient. So the first is added to what the first token writes, and the last is that of the output: both are
then differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Call, wants_gradient
from ..libraries import call_library

LEAST = 1e-30  # stands for smaller decays, which forget as much, and has a finite logarithm and gradient
POSITIVE = "positive"  # the variant of decays that are


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if call.variant != POSITIVE:
        return "it takes logarithms of decays, which may be negative here"
    if call.dtype != torch.float32:
        return f"its kernels compute in float32, and decays or writes are of {str(call.dtype).removeprefix('torch.')}"
    return None


def linear_scan(decay: Tensor, writes: Tensor, start: Tensor) -> Tensor:
    from fla.ops import hgrn

    if writes.shape[1] == 1:
        return torch.addcmul(writes, decay, start[:, None])
    writes = torch.cat([torch.addcmul(writes[:, :1], decay[:, :1], start[:, None]), writes[:, 1:]], dim=1)
    raised = (LEAST - decay).clamp(min=0).detach()
    x, g = writes.flatten(2), (decay + raised).log().flatten(2)
    short = writes.shape[1] <= 64 and not wants_gradient(x, g)
    run = hgrn.fused_recurrent_hgrn if short else hgrn.chunk_hgrn
    states, _ = call_library(run, x=x.contiguous(), g=g.contiguous())
    return states.view_as(writes)
