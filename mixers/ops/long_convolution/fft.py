"""Fast Fourier transforms over time, a group of channels after another so that spectra stay small."""

from __future__ import annotations

import torch
from torch import Tensor

BUDGET = 2**22  # numbers transformed at once


def long_convolution(inputs: Tensor, filters: Tensor, outputs: int) -> Tensor:
    batch, time, _ = inputs.shape
    if outputs == 1:
        return (inputs * filters.flip(0)).sum(1, keepdim=True)
    size = _size(time + outputs - 1)  # what wraps around ends before the outputs begin
    group = max(1, BUDGET // (batch * size))
    parts = [
        _convolve(x.mT, h.mT, size)[..., time - outputs : time].mT
        for x, h in zip(inputs.split(group, dim=2), filters.split(group, dim=1))
    ]
    return torch.cat(parts, dim=2)


def _convolve(inputs: Tensor, filters: Tensor, size: int) -> Tensor:
    """Cyclic, over the last dimension, of `inputs [batch, channels, time]` and `filters [channels, time]`."""
    spectrum = torch.fft.rfft(inputs.contiguous(), n=size) * torch.fft.rfft(filters.contiguous(), n=size)
    return torch.fft.irfft(spectrum, n=size)


def _size(least: int) -> int:
    """The smallest of 1, 3 and 5 times a power of two that is `least` or more: quick to transform."""
    return min(m << max(0, (-(-least // m) - 1).bit_length()) for m in (1, 3, 5))
