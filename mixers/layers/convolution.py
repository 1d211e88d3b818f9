"""The short causal convolution that stands before many mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.short_convolution import Activation, short_convolution


class ShortConvolution(nn.Module):
    """A causal depthwise convolution over the last `size` tokens, optionally followed by SiLU.

    `y, conv_state = conv(x, conv_state)` with `x [batch, time, channels]`; conv_state `[batch, size - 1, channels]`
    holds the last inputs and continues the sequence. None starts fresh: zeros stand before the first token, so that it
    has the same size at every position. `weight [channels, size]`, the newest token last, and the bias, if asked for,
    start as `nn.Conv1d`'s would.
    """

    def __init__(self, channels: int, size: int, activation: Activation = None, bias: bool = False) -> None:
        super().__init__()
        if channels < 1 or size < 1:
            raise ValueError(f"a short convolution needs channels >= 1 and size >= 1, got {channels} and {size}")
        if activation not in (None, "silu"):
            raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
        self.channels, self.size, self.activation = channels, size, activation
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.size**-0.5), self.size**-0.5)

    def forward(self, x: Tensor, conv_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return short_convolution(x, self.weight, self.bias, activation=self.activation, state=conv_state)

    def extra_repr(self) -> str:
        return f"{self.channels}, size={self.size}, activation={self.activation!r}"
