"""The cases of the short convolution that the kernels of causal-conv1d are proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import short_convolution

CHANNELS = 1024
LARGEST = 4  # tokens that those kernels see


def problems(width: int) -> list[Problem]:
    """With and without a bias and SiLU; width: the tokens that the convolution sees, which are few."""
    return [_problem(variant, min(width, LARGEST)) for variant in ("", "bias", "bias+silu", "silu")]


def _problem(variant: str, size: int) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = {"x": normal(batch, time, CHANNELS), "weight": normal(CHANNELS, size)}
        return x | {"bias": normal(CHANNELS)} if "bias" in variant else x

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return short_convolution(**x, activation="silu" if "silu" in variant else None, state=state, backend=backend)

    fixed = ("weight", "bias") if "bias" in variant else ("weight",)
    return Problem(variant, inputs, run, fixed=fixed)
