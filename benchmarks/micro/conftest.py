"""Micro benchmarks: random input, a backend that runs here, and a name in the table that stays the same over commits.

What is recorded of each beside its times is what `make micro` appends to the history: what was timed, how busy the
machine was, and how long causal attention of one fixed size took just before the group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from mixerzoo.benchmarks.environment import machine
from mixerzoo.benchmarks.measures.meter import quartiles
from mixerzoo.benchmarks.micro_history import ABOUT_SESSION, state_of_source
from mixerzoo.mixers.ops.dispatch import Op
from torch.nn import functional as F

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
LENGTHS = (2048, 16384) if DEVICE.type == "cuda" else (256, 2048)
REFERENCE_SIZE = (1, 8, 1024, 64)  # batch, heads, tokens, width: some 10 ms on a core
REFERENCE_ROUNDS = 9


@dataclass(frozen=True)
class Point:
    """What is timed: a backend of an op, or of a piece of it, in one case. direction: `forward`, or `train` for forward
    and backward."""

    op: str
    variant: str
    backend: str
    direction: str
    length: int

    @property
    def group(self) -> str:
        return f"{self.op}, {self.length:,} tokens"


def backends(op: Op) -> dict[str, list[pytest.MarkDecorator]]:
    """The marks of every backend of an op: those that cannot run here are skipped, with their reason."""
    reasons = {name: backend.why_not(DEVICE) for name, backend in op.backends.items()}
    return {
        name: [pytest.mark.skip(reason=f"{op.name}, {name}: {why}")] if why else [] for name, why in reasons.items()
    }


@pytest.fixture
def normal() -> Callable[..., torch.Tensor]:
    """`normal(*shape)`: normal numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(DEVICE)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], dict[str, Any]]:
    """`reference(group)`: quartiles of the reference time before a group, and the load of the machine then."""
    last: dict[str, Any] = {"group": None}

    def before(group: str) -> dict[str, Any]:
        if last["group"] != group:
            last.update(group=group, reference=_time_reference(), load=round(os.getloadavg()[0], 2))
        return {name: last[name] for name in ("reference", "load")}

    return before


@pytest.fixture
def timed(benchmark: Any, reference: Any) -> Callable[[Callable[[], object], Point], None]:
    """`timed(work, point)`: time `work()`, on a GPU until it has finished, once it has run for the first time."""

    def run(work: Callable[[], object], point: Point) -> None:
        benchmark.group = point.group
        finished(work)
        benchmark.extra_info |= {**asdict(point), "dtype": str(DTYPE).removeprefix("torch."), **reference(point.group)}
        benchmark(finished, work)

    return run


def finished(work: Callable[[], object]) -> object:
    """What `work()` returns, once a GPU is done with it."""
    result = work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result


def _time_reference() -> dict[str, float]:
    x = torch.randn(REFERENCE_SIZE, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)
    seconds = []
    with torch.no_grad():
        for _ in range(REFERENCE_ROUNDS + 1):
            start = time.perf_counter()
            finished(lambda: F.scaled_dot_product_attention(x, x, x, is_causal=True))
            seconds.append(time.perf_counter() - start)
    return quartiles(seconds[1:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(max_time=0.3, min_rounds=7))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What is the same for all of a session; `append` of the history looks for it there."""
    found = machine()
    machine_info[ABOUT_SESSION] = {
        "machine": {
            "cpu": found["cpu"],
            "cores": found["usable_cores"],
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        },
        "torch": torch.__version__,
        **state_of_source(),
    }
