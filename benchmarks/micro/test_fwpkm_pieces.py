"""The pieces of FwPKM by themselves, for one chunk of the released sizes: addressing it, reading its compact table,
comparing it with targets and adding to it. The suite fwpkm-speed measures the whole at these sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.fwpkm.primitives import TORCH, Accesses

from .conftest import Point

CHUNK, TOP_K, N_SUBKEYS, WIDTH = 512, 8, 512, 512
ROWS = CHUNK * TOP_K

Chunk = tuple[torch.Tensor, Accesses, torch.Tensor, torch.Tensor]


def piece(name: str) -> Point:
    return Point("fwpkm", name, "torch", "forward", CHUNK)


@pytest.fixture
def chunk(normal: Any) -> Chunk:
    """The compact table, accesses, weights and tokens, a few slots shared."""
    ids = (normal(CHUNK, TOP_K).abs() * ROWS / 4).long().clamp_max(ROWS - 1)
    return normal(ROWS, WIDTH), Accesses.to(ids, ROWS), normal(CHUNK, TOP_K).softmax(-1), normal(CHUNK, WIDTH)


@pytest.mark.parametrize("score", ["idw", "dot"])
def test_address(normal: Any, score: Any, timed: Any) -> None:
    halves, keys = normal(1, 1, 2, CHUNK, WIDTH // 2), normal(1, 1, 2, N_SUBKEYS, WIDTH // 2)
    timed(lambda: TORCH.address(halves, keys, TOP_K, score), piece(f"address a chunk, {score}"))


def test_read(chunk: Chunk, timed: Any) -> None:
    table, accesses, weights, _ = chunk
    timed(lambda: TORCH.read(table, accesses, weights), piece("read a chunk"))


def test_gather_dot(chunk: Chunk, timed: Any) -> None:
    table, accesses, _, x = chunk
    timed(lambda: TORCH.gather_dot(table, accesses, x), piece("compare a chunk"))


def test_add(chunk: Chunk, timed: Any) -> None:
    table, accesses, weights, x = chunk
    steps = -1e-6 * accesses.sort(weights)
    timed(lambda: TORCH.add(table, accesses, x, steps), piece("add to a chunk's rows"))
