"""What TTT's backends are proven on: mini-batches as the mixer has them, and shorter ones, which kernels pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import ttt

HEADS = 2
SEQUENCE = ("queries", "keys", "values", "step_sizes")


def problems(width: int) -> list[Problem]:
    """TTT-Linear with heads of `width` features."""
    return [_problem(width, "linear", 16), _problem(width, "linear+short", 8)]


def _problem(width: int, variant: str, size: int) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return {
            **{name: normal(batch, time, HEADS, width) for name in SEQUENCE[:3]},
            "step_sizes": normal(batch, time, HEADS).sigmoid() / width,
            "position_scale": 1 / torch.arange(1, size + 1, dtype=torch.float64),
            "norm_weight": 1 + 0.1 * normal(HEADS, width),
            "norm_bias": 0.1 * normal(HEADS, width),
            "weight": normal(HEADS, width, width) / width**0.5,
            "bias": 0.1 * normal(HEADS, 1, width),
        }

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        given: Any = {name: x for name, x in inputs.items() if name not in ("weight", "bias")}
        weights = ((inputs["weight"], inputs["bias"]),)
        return ttt(**given, weights=weights, state=state, return_state=True, backend=backend)

    fixed = ("position_scale", "norm_weight", "norm_bias", "weight", "bias")
    return Problem(variant, inputs, run, fixed=fixed, exact=("step_sizes", *fixed))
