"""The sum, output by output."""

from __future__ import annotations

import torch
from torch import Tensor


def long_convolution(inputs: Tensor, filters: Tensor, outputs: int) -> Tensor:
    time = inputs.shape[1]
    sums = [(inputs[:, : t + 1] * filters[: t + 1].flip(0)).sum(1) for t in range(time - outputs, time)]
    return torch.stack(sums, dim=1)
