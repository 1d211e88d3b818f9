"""The short causal convolution that stands before many mixers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShortConvolution(nn.Module):
    """A causal depthwise convolution over the last `size` tokens, optionally followed by SiLU.

    `y, conv_state = conv(x, conv_state)` with `x [batch, time, channels]`; conv_state `[batch, size - 1, channels]`
    holds the last inputs and continues the sequence. None starts fresh: zeros stand before the first token, so that it
    has the same size at every position. `weight [channels, size]`, the newest token last, and the bias, if asked for,
    start as `nn.Conv1d`'s would.
    """

    def __init__(self, channels: int, size: int, activation: Literal["silu"] | None = None, bias: bool = False) -> None:
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
        time, weight = x.shape[1], self.weight.to(x.dtype)
        if conv_state is None:
            conv_state = x.new_zeros(x.shape[0], self.size - 1, self.channels)
        padded = torch.cat([conv_state.to(x.dtype), x], dim=1)
        # A sum of shifted products is faster here than conv1d, which wants time last.
        if self.bias is None:
            y = padded[:, :time] * weight[:, 0]
        else:
            y = torch.addcmul(self.bias.to(x.dtype), padded[:, :time], weight[:, 0])
        for i in range(1, self.size):
            y = torch.addcmul(y, padded[:, i : i + time], weight[:, i])
        return F.silu(y) if self.activation == "silu" else y, padded[:, time:].clone()

    def extra_repr(self) -> str:
        return f"{self.channels}, size={self.size}, activation={self.activation!r}"
