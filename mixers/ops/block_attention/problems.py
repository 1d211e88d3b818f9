"""What the backends of attention to blocks are proven on: fresh calls of sizes that fit a GPU's tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problems import Inputs, Problem
from . import block_attention

HEADS, KV_HEADS, BLOCK_SIZE, SPREAD = 32, 2, 32, 3


def problems(width: int) -> list[Problem]:
    """A token reads its own block, and of each of two shares of those before it the last one."""

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(heads: int) -> Tensor:
            return torch.randn(batch, time, heads, width, generator=generator, dtype=torch.float64)

        return {"queries": normal(HEADS), "keys": normal(KV_HEADS), "values": normal(KV_HEADS)}

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        queries = inputs["queries"]
        blocks = _blocks(queries.shape[1], queries.device).expand(len(queries), -1, KV_HEADS, -1)
        return block_attention(**inputs, blocks=blocks, block_size=BLOCK_SIZE, backend=backend), None

    return [Problem("tiled", inputs, run, carries_state=False)]


def _blocks(time: int, device: torch.device) -> Tensor:
    """`[1, time, 1, SPREAD]`: which blocks each token reads, -1 for none."""
    own = torch.arange(time, device=device)[:, None] // BLOCK_SIZE
    share = torch.arange(SPREAD, 0, -1, device=device)  # own, two thirds, a third of the way
    chosen = own * share // SPREAD
    repeated = torch.cat([torch.zeros_like(own, dtype=torch.bool), chosen[:, 1:] == chosen[:, :-1]], dim=1)
    return chosen.masked_fill(repeated, -1)[None, :, None]
