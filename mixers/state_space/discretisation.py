"""What the layers of the Mamba family share: their sizes, and where their step sizes start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inner_heads(d_model: int, expand: int, d_head: int, groups: int) -> tuple[int, int]:
    """Channels of the recurrence, and heads of d_head that they make. Raises `ValueError` if they do not divide."""
    d_inner = expand * d_model
    if d_inner % d_head:
        raise ValueError(f"expand * d_model = {d_inner} is no multiple of d_head = {d_head}: change one of them")
    heads = d_inner // d_head
    if heads % groups:
        raise ValueError(f"the {heads} heads (expand * d_model / d_head) are no multiple of groups = {groups}")
    return d_inner, heads


def initial_dt_bias(channels: int, least: float = 1e-3, most: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """Biases `[channels]` at which softplus(bias) is log-uniform in least..most, and at least floor."""
    dt = torch.empty(channels).uniform_(math.log(least), math.log(most)).exp().clamp(min=floor)
    return dt + (-torch.expm1(-dt)).log()
