"""Adapter to flash-linear-attention's log-linear attention (the package fla-core, 0.6 and later).

For a text from its beginning, whose state nobody wants: the library's state holds the tokens of the last chunk, ours
holds none, and only a text from its beginning has gradients. Its keys are of a multiple of 64 features and its values
of a power of two: both are filled up with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Call
from ..libraries import call_library, filled

CARRIED, CAPPED = "carried", "capped"  # variants: a state goes in or out; a level holds more tokens than is its share
LONGEST = 2**17


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if call.dtype == torch.float64:
        return "its kernels compute in float32 at most, and the values are of float64"
    if call.variant == CARRIED:
        return "its kernel takes whole texts, and its state is another one than ours"
    if call.variant == CAPPED:
        return "its kernel has a level of its own for every power of two tokens, and this call has fewer"
    if call.tokens >= LONGEST:
        return f"its kernel takes fewer than {LONGEST} tokens, got {call.tokens}"
    return None


def log_linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    level_scales: Tensor,
    position: int,
    scale: float,
    chunk_size: int,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    from fla.ops import log_linear_attn

    d_v = values.shape[3]
    y, _ = call_library(
        log_linear_attn.chunk_log_linear_attn,
        q=filled(queries.to(values.dtype), 64).contiguous(),
        k=filled(keys.to(values.dtype), 64).contiguous(),
        v=filled(values, max(16, 1 << (d_v - 1).bit_length())).contiguous(),
        g=log_decay.float().contiguous(),
        level_scales=level_scales.to(values.dtype).contiguous(),
        scale=scale,
    )
    return y[..., :d_v], state
