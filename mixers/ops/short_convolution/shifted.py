"""A sum of shifted products: faster here than conv1d, which wants time last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    time, weight = x.shape[1], weight.to(x.dtype)
    padded = torch.cat([state, x], dim=1)
    if bias is None:
        y = padded[:, :time] * weight[:, 0]
    else:
        y = torch.addcmul(bias.to(x.dtype), padded[:, :time], weight[:, 0])
    for i in range(1, weight.shape[1]):
        y = torch.addcmul(y, padded[:, i : i + time], weight[:, i])
    return F.silu(y) if activation == "silu" else y, padded[:, time:].clone()
