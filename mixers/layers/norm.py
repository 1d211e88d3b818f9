"""Normalisation, with one epsilon for all mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension that returns the dtype of its input, under autocast too."""

    def __init__(self, size: int, eps: float = NORM_EPS) -> None:
        super().__init__(size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


def unit_length(x: Tensor) -> Tensor:
    """`x` over its 2-norm along the last dimension: computed in float32 at least, and of the dtype of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # eps inside the root keeps the gradient of a zero vector finite
    return (wide * (wide.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)
