"""What the backends of PaTH attention are proven on: calls without a state, for with one there is one backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import path_attention

HEADS, KV_HEADS = 4, 2
EXACT = ("directions", "beta", "log_forget")  # as the mixer gives them


def problems(width: int) -> list[Problem]:
    """With and without forgetting, of heads of `width` features."""
    return [_problem(width, forgetting) for forgetting in (False, True)]


def _problem(width: int, forgetting: bool) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*size: int) -> Tensor:
            return torch.randn(batch, time, *size, generator=generator, dtype=torch.float64)

        drawn = {
            "queries": normal(HEADS, width),
            "keys": normal(KV_HEADS, width),
            "values": normal(KV_HEADS, width),
            "directions": F.normalize(normal(KV_HEADS, width), dim=-1),
            "beta": 2 * normal(KV_HEADS).sigmoid(),
        }
        return drawn | ({"log_forget": F.logsigmoid(normal(HEADS) + 2)} if forgetting else {})

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        tensors: Any = inputs
        return path_attention(**tensors, backend=backend)[0], None

    exact = EXACT if forgetting else EXACT[:2]
    return Problem("forget" if forgetting else "", inputs, run, carries_state=False, exact=exact)
