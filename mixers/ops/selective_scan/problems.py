"""The cases of the selective scan that Mamba's kernels are proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import selective_scan
from .mamba_ssm import CARRIED

CHANNELS = 256


def problems(width: int) -> list[Problem]:
    """A text from its beginning, and one that goes on from a state, for `width` numbers per channel."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        return {
            "values": normal(batch, time, CHANNELS),
            "step": F.softplus(normal(batch, time, CHANNELS) - 4),
            "A": -torch.arange(1, width + 1, dtype=torch.float64).repeat(CHANNELS, 1),
            "B": normal(batch, time, width),
            "C": normal(batch, time, width),
        }

    def fresh(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return selective_scan(**x, backend=backend)

    def carried(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return selective_scan(**x, state=state, return_state=True, backend=backend)

    return [
        Problem("", inputs, fresh, fixed=("A",), exact=("step", "A"), carries_state=False),
        Problem(CARRIED, inputs, carried, fixed=("A",), exact=("step", "A")),
    ]
