"""Normalisation, with one epsilon for all mixers."""

from __future__ import annotations

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
    """`x` over its 2-norm along the last dimension."""
    # eps inside the root keeps the gradient of a zero vector finite
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
