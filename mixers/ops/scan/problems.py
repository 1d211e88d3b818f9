"""What fla's scan is proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import linear_scan
from .fla import POSITIVE

CHANNELS = 1024


def problems(width: int) -> list[Problem]:
    """Decays from hardly any to nearly all, over some thousand channels, whatever the width: scans know no heads."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal() -> Tensor:
            return torch.randn(batch, time, CHANNELS, generator=generator, dtype=torch.float64)

        return {"decay": (3 * normal() + 2).sigmoid(), "writes": normal()}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return linear_scan(**x, positive=True, state=state, return_state=True, backend=backend)

    return [Problem(POSITIVE, inputs, run, exact=("decay", "writes"))]
