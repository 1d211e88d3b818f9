"""What fla's kernels of slot attention are proven on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import slot_attention

HEADS = 4


def problems(width: int) -> list[Problem]:
    """Keys, values and slots of `width`, each slot gated as in gated slot attention."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal() -> Tensor:
            return torch.randn(batch, time, HEADS, width, generator=generator, dtype=torch.float64)

        log_decay = F.logsigmoid(normal()) / 8
        writes = -torch.expm1(log_decay)
        return {"queries": normal(), "keys": normal(), "values": normal(), "writes": writes, "log_decay": log_decay}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return slot_attention(**x, state=state, return_state=True, backend=backend)

    return [Problem("", inputs, run, exact=("log_decay", "writes"))]
