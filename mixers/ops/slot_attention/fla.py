"""Adapter to flash-linear-attention's gated slot attention (the package fla-core, 0.6 and later).

Its kernels keep sums and states in float32. Head sizes are filled up with zeros where it takes none such; slots cannot
be, since the softmax would see them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Call, wants_gradient
from ..libraries import call_library, filled

UNALIGNED = "unaligned"  # the variant of a number of slots that is no multiple of 8


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if call.dtype == torch.float64:
        return "its kernels compute in float32 at most, and the values are of float64"
    if call.variant == UNALIGNED:
        return "its kernels take a multiple of 8 slots"
    return None


def slot_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    writes: Tensor,
    log_decay: Tensor,
    scale: float,
    chunk_size: int,
    state: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Its chunks have the size that it is tuned for; one token without gradients is its kernel for decoding."""
    from fla.ops import gsa

    d_k, d_v = keys.shape[3], values.shape[3]
    gradient = wants_gradient(queries, keys, values, writes, log_decay, *(state or ()))
    run = gsa.fused_recurrent_gsa if values.shape[1] == 1 and not gradient else gsa.chunk_gsa
    if not gradient:  # it looks whether tensors require a gradient, not whether one is wanted
        queries, keys, values, writes, log_decay = (x.detach() for x in (queries, keys, values, writes, log_decay))
        state = None if state is None else (state[0].detach(), state[1].detach())
    q, k, v = (filled(x.to(values.dtype)).contiguous() for x in (queries, keys, values))
    if state is not None:  # its keys of slots stand the other way round
        state = filled(state[0].float()).mT.contiguous(), filled(state[1].float()).contiguous()
    y, (slot_keys, slot_values) = call_library(
        run,
        q=q,
        k=k,
        v=v,
        s=writes.to(values.dtype).contiguous(),
        g=log_decay.float().contiguous(),
        scale=scale,
        initial_state=state,
        output_final_state=True,
    )
    return y[..., :d_v], (slot_keys.mT[..., :d_k].contiguous(), slot_values[..., :d_v].contiguous())
