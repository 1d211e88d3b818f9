"""Where step sizes and output projections start in Mamba-2 and what descends from it, and its sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def inner_heads(d_model: int, expand: int, d_head: int | None, groups: int) -> tuple[int, int, int]:
    """Channels of the recurrence, channels of a head, and how many heads that makes.

    d_head None: 64, or the largest power of two below it that divides the channels.
    Raises `ValueError` if something does not divide.
    """
    d_inner = expand * d_model
    if d_head is None:
        d_head = math.gcd(d_inner, 64)
    if d_inner % d_head:
        raise ValueError(f"expand * d_model = {d_inner} is no multiple of d_head = {d_head}: change one of them")
    heads = d_inner // d_head
    if heads % groups:
        raise ValueError(f"the {heads} heads (expand * d_model / d_head) are no multiple of groups = {groups}")
    return d_inner, d_head, heads


def initial_dt_bias(channels: int, least: float = 1e-3, most: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """Biases `[channels]` at which softplus(bias) is log-uniform in least..most, and at least floor."""
    dt = torch.empty(channels).uniform_(math.log(least), math.log(most)).exp().clamp(min=floor)
    return dt + (-torch.expm1(-dt)).log()


def output_projection(d_inner: int, d_model: int, n_layers: int) -> nn.Linear:
    """Starts as `nn.Linear` does, divided by the root of the number of residual branches, two per layer (the release's
    `rescale_prenorm_residual`), so that their sum keeps its scale at any depth."""
    projection = nn.Linear(d_inner, d_model, bias=False)
    with torch.no_grad():
        projection.weight.mul_((2 * n_layers) ** -0.5)
    return projection
