"""Group normalisation with one group per head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.Module):
    """LayerNorm of each head of `x [..., heads, d]` by itself, with a weight for every head and channel.

    The same as `nn.GroupNorm(heads, heads * d)` on the heads side by side; returns the dtype of its input.
    Raises `ValueError` for d below 2.
    """

    def __init__(self, heads: int, d: int, eps: float = 1e-5, bias: bool = False) -> None:
        if d < 2:
            raise ValueError(f"heads must have at least 2 features: one number less its mean is 0; got {d}")
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, d))
        self.bias = nn.Parameter(torch.zeros(heads, d)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        y = F.layer_norm(x.to(precision), x.shape[-1:], eps=self.eps) * self.weight.to(precision)
        return (y if self.bias is None else y + self.bias.to(precision)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.weight.shape))}, eps={self.eps}, bias={self.bias is not None}"
