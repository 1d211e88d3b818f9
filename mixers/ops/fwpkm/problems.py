"""What FwPKM's backends are proven on: a memory that every token reads, and rewrites several times."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import fwpkm
from .problem import KeyObjective

HEADS, TOP_K, N_SUBKEYS, CHUNK_SIZE = 2, 4, 16, 32
FIXED = ("keys", "values")


def problems(width: int) -> list[Problem]:
    """One for each objective of the keys; queries and slots of `width` features."""
    return [_problem(width, objective) for objective in get_args(KeyObjective)]


def _problem(width: int, objective: KeyObjective) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return {
            "queries": normal(batch, time, HEADS, width),
            "targets": normal(batch, time, width),
            "gates": normal(batch, time).sigmoid(),
            # far from each other, so that rounding picks the same slots
            "keys": normal(HEADS, 2, N_SUBKEYS, width // 2),
            "values": normal(N_SUBKEYS**2, width),
        }

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        options: Any = {"top_k": TOP_K, "chunk_size": CHUNK_SIZE, "key_objective": objective}
        tensors: Any = inputs
        output = fwpkm(**tensors, **options, state=state, return_state=True, backend=backend)
        return output.retrieved, output.state

    return Problem(objective, inputs, run, fixed=FIXED, exact=FIXED)
