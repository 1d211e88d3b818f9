"""What fla's kernel of log-linear attention is proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import log_linear_attention

HEADS, LEVELS = 4, 17


def problems(width: int) -> list[Problem]:
    """Texts from their beginning, of up to 32,768 tokens, with keys and values of `width`."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sizes = (batch, time, HEADS)
        return {
            "queries": normal(*sizes, width),
            "keys": F.normalize(normal(*sizes, width), dim=-1),
            "values": normal(*sizes, width),
            "log_decay": -normal(*sizes).sub(3).exp(),
            "level_scales": F.softplus(normal(*sizes, LEVELS)),
        }

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return log_linear_attention(**x, backend=backend)

    return [Problem("", inputs, run, exact=("log_decay", "level_scales"), carries_state=False)]
