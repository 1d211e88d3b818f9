"""A causal convolution per channel whose filter is as long as the sequence."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("fft", "fft:long_convolution"),
    Backend("reference", "reference:long_convolution", trust="never"),
)

__all__ = ["OP", "long_convolution"]


def long_convolution(inputs: Tensor, filters: Tensor, *, outputs: int | None = None, backend: str = "auto") -> Tensor:
    """`y_t = sum over s = 0..t of filters_s * inputs_{t-s}`, per channel, for the last `outputs` times.

    inputs `[batch, time, channels]`, from the first token on; filters `[lags >= time, channels]`, the newest token
    first. There is no state shorter than the inputs themselves: whoever continues a sequence gives all of them again,
    and asks for as many outputs as are new. outputs None: all.
    backend: `fft` (time * log(time); one output alone is a plain sum), `reference`, or `auto`.
    Returns `[batch, outputs, channels]` in the dtype of `inputs`. Raises `ValueError` if sizes do not fit together.
    """
    if inputs.ndim != 3 or 0 in inputs.shape:
        raise ValueError(f"inputs must be [batch, time, channels], none of them 0, got {list(inputs.shape)}")
    time, channels = inputs.shape[1:]
    if filters.ndim != 2 or len(filters) < time or filters.shape[1] != channels:
        raise ValueError(f"filters must be [lags >= {time}, channels = {channels}], got {list(filters.shape)}")
    outputs = time if outputs is None else outputs
    if not 1 <= outputs <= time:
        raise ValueError(f"outputs must be from 1 to time = {time}, got {outputs}")
    run = OP.select(backend, inputs.device)
    precision = torch.promote_types(torch.promote_types(inputs.dtype, filters.dtype), torch.float32)
    with autocast(inputs.device.type, enabled=False):
        return run(inputs.to(precision), filters[:time].to(precision), outputs).to(inputs.dtype)
