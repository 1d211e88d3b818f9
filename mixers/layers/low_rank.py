"""A linear layer of low rank."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class LowRank(nn.Module):
    """`up(activation(down(x)))`: how gates and decays depend on a token at little cost; bias: of `up`."""

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, rank, bias=False)
        self.up = nn.Linear(rank, d_out, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        return self.up(inner if self.activation is None else self.activation(inner))
