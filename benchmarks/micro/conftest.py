"""Microbenchmarks: random input, a backend that runs here, and a name in the table that stays the same over commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.dispatch import Op

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 7


def backends(op: Op) -> list[Any]:
    """Parameters for `backend`: every one of an op, those that cannot run here skipped with their reason."""
    reasons = {name: backend.why_not(DEVICE) for name, backend in op.backends.items()}
    return [
        pytest.param(name, marks=pytest.mark.skip(reason=f"{op.name}, {name}: {why}") if why else [])
        for name, why in reasons.items()
    ]


@pytest.fixture
def normal() -> Callable[..., torch.Tensor]:
    """`normal(*shape)`: normal numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(DEVICE)


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """`timed(work, iterations=1)`: time `work()`, so many times within a round, on a GPU until it has finished."""

    def run(work: Callable[[], object], iterations: int = 1) -> None:
        def finished() -> object:
            result = work()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.pedantic(finished, warmup_rounds=1, rounds=ROUNDS, iterations=iterations)

    return run
