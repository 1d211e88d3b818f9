"""A linear layer whose matrix is block-diagonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BlockLinear(nn.Module):
    """`x [..., blocks, d]` with a matrix of its own for each block, `weight [blocks, d, d]` from the last dimension to
    the one before; without bias."""

    def __init__(self, blocks: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, d, d))
        nn.init.uniform_(self.weight, -(d**-0.5), d**-0.5)  # as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...bi,boi->...bo", x, self.weight)
