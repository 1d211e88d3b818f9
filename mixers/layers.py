"""Building blocks that several mixers share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

YARN_ALPHA, YARN_BETA = 1.0, 32.0  # turns within the trained length; the paper's values for LLaMA


class ShortConvolution(nn.Module):
    """A causal depthwise convolution over the last `size` tokens, optionally followed by SiLU.

    `y, tail = conv(x, tail)` with `x [batch, time, channels]`; the tail `[batch, size - 1, channels]` holds the last
    inputs and continues the sequence. None starts fresh: zeros stand before the first token, so that the tail has the
    same size at every position. `weight [channels, size]`, the newest token last, starts as `nn.Conv1d` would.
    """

    def __init__(self, channels: int, size: int, activation: Literal["silu"] | None = None) -> None:
        super().__init__()
        if channels < 1 or size < 1:
            raise ValueError(f"a short convolution needs channels >= 1 and size >= 1, got {channels} and {size}")
        if activation not in (None, "silu"):
            raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
        self.channels, self.size, self.activation = channels, size, activation
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.size**-0.5), self.size**-0.5)

    def forward(self, x: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time, weight = x.shape[1], self.weight.to(x.dtype)
        if tail is None:
            tail = x.new_zeros(x.shape[0], self.size - 1, self.channels)
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        # A sum of shifted products is faster here than conv1d, which wants time last.
        y = padded[:, :time] * weight[:, 0]
        for i in range(1, self.size):
            y = torch.addcmul(y, padded[:, i : i + time], weight[:, i])
        return F.silu(y) if self.activation == "silu" else y, padded[:, time:].clone()

    def extra_repr(self) -> str:
        return f"{self.channels}, size={self.size}, activation={self.activation!r}"


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension that returns the dtype of its input, under autocast too."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__(size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


def rotary_angles(
    position: int,
    time: int,
    d_head: int,
    theta: float,
    device: torch.device,
    *,
    factor: float = 1.0,
    trained_length: int | None = None,
) -> Tensor:
    """Angles `[time, d_head / 2]` of rotary embeddings (Su et al. 2021, 2104.09864) from absolute `position` on.

    factor, trained_length: turned for texts `factor` times longer than those of the training, see `yarn_frequencies`.
    In float64: at position 1,000,000 float32 would already be off by 0.06 rad.
    """
    frequencies = theta ** (-torch.arange(0, d_head, 2, device=device, dtype=torch.float64) / d_head)
    if trained_length is not None:
        frequencies = yarn_frequencies(frequencies, factor, trained_length)
    return torch.arange(position, position + time, device=device, dtype=torch.float64)[:, None] * frequencies


def yarn_frequencies(frequencies: Tensor, factor: float, trained_length: int) -> Tensor:
    """Rotary frequencies (rad per token) for texts `factor` times longer than `trained_length` tokens.

    "NTK-by-parts" of YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2, alpha 1 and beta 32): what turns less than
    once in `trained_length` tokens turns `factor` times slower, what turns more than 32 times stays, and in between the
    two are mixed linearly. A static factor: an angle depends on its position alone, never on how much was read.
    """
    turns = trained_length * frequencies / (2 * math.pi)
    kept = ((turns - YARN_ALPHA) / (YARN_BETA - YARN_ALPHA)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def yarn_logit_scale(factor: float) -> float:
    """What YaRN (section 3.4) multiplies attention logits by, 1 / t: its square root is 0.1 ln(factor) + 1."""
    return (0.1 * math.log(factor) + 1) ** 2


def apply_rotary(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate feature i of `x [batch, time, heads, d_head]` against feature i + d_head / 2; same dtype as `x`."""
    precision = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(precision)[:, None], angles.sin().to(precision)[:, None]
    first, second = x.to(precision).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[batch, time, heads * d_head]` as `[batch, time, heads, d_head]`, a view."""
    return x.unflatten(-1, (heads, -1))
