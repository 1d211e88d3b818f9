"""What fla's kernels of ridge regression are proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import ridge_regression

HEADS = 4


def problems(width: int) -> list[Problem]:
    """The Mesa layer's, with keys and values of `width` features."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sizes = (batch, time, HEADS)
        return {
            "queries": F.normalize(normal(*sizes, width), dim=-1),
            "keys": F.normalize(normal(*sizes, width), dim=-1),
            "values": normal(*sizes, width),
            "log_decay": F.logsigmoid(normal(*sizes) + 3),
            "beta": normal(*sizes).sigmoid(),
            "ridge": F.softplus(normal(HEADS, width)) + 0.25,
        }

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return ridge_regression(**x, state=state, return_state=True, backend=backend)

    return [Problem("", inputs, run, fixed=("ridge",), exact=("log_decay", "beta", "ridge"))]
