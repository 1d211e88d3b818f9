"""Rotary position embedding, and its stretching to longer texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

YARN_ALPHA, YARN_BETA = 1.0, 32.0  # turns within the trained length; the paper's values for LLaMA


def rotary_angles(
    position: int | Tensor,
    time: int,
    d_head: int,
    theta: float,
    device: torch.device,
    *,
    factor: float = 1.0,
    trained_length: int | None = None,
) -> Tensor:
    """Angles `[time, d_head / 2]` of rotary embeddings (Su et al. 2021, 2104.09864) from absolute `position` on, which
    may be a tensor of no dimensions.

    factor, trained_length: turned for texts `factor` times longer than those of the training, see `yarn_frequencies`.
    In float64: at position 1,000,000 float32 would already be off by 0.06 rad.
    """
    frequencies = theta ** (-torch.arange(0, d_head, 2, device=device, dtype=torch.float64) / d_head)
    if trained_length is not None:
        frequencies = yarn_frequencies(frequencies, factor, trained_length)
    places = position + torch.arange(time, device=device, dtype=torch.float64)  # whole numbers: exact
    return places[:, None] * frequencies


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
