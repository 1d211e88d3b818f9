"""What the backends of stick-breaking attention are proven on: fresh calls, for with a cache there is one backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import stick_breaking

HEADS, KV_HEADS = 4, 2


def problems(width: int) -> list[Problem]:
    """With and without the query's own key, of heads of `width` features; what is left goes to the own value."""
    return [_problem(width, current) for current in (False, True)]


def _problem(width: int, current: bool) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(heads: int) -> Tensor:
            return torch.randn(batch, time, heads, width, generator=generator, dtype=torch.float64)

        return {"queries": normal(HEADS), "keys": normal(KV_HEADS), "values": normal(KV_HEADS)}

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        tensors: Any = inputs
        return stick_breaking(**tensors, attend_current=current, remainder=True, backend=backend), None

    return Problem("current" if current else "", inputs, run, carries_state=False)
