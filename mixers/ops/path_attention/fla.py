"""Adapter to flash-linear-attention's PaTH attention, for calls that neither continue nor leave a state."""

from __future__ import annotations

from torch import Tensor
from torch.amp import autocast
from torch.nn import functional as F

from ..attention import fla
from ..dispatch import Call
from ..libraries import call_library

WIDTHS = (16, 32, 64, 128)  # head sizes of its kernels; others are filled up with zeros


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    return "it carries no state" if "state" in call.variant else fla.refuses(call, WIDTHS[-1])


def path_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    directions: Tensor,
    beta: Tensor,
    log_forget: Tensor | None,
    scale: float,
    chunk_size: int,
    state: None,
    return_state: bool,
) -> tuple[Tensor, None]:
    """Its products of reflections are in float16, whatever the dtype."""
    from fla.ops.path_attn import parallel_path_attn

    d_value = values.shape[3]
    queries, keys = queries.to(values.dtype), keys.to(values.dtype)
    queries, keys, values, directions = (_filled(x) for x in (queries, keys, values, directions))
    # it multiplies the sum of both terms of a logit by the scale
    gate = None if log_forget is None else log_forget.float() / scale
    with autocast(queries.device.type, enabled=False):
        y, _ = call_library(
            parallel_path_attn, queries, keys, values, directions.float(), beta.float(), gate, scale=scale
        )
    return y[..., :d_value], None


def _filled(x: Tensor) -> Tensor:
    width = next(width for width in WIDTHS if width >= x.shape[-1])
    return F.pad(x, (0, width - x.shape[-1])) if width > x.shape[-1] else x
