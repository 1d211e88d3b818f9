"""How fast a machine is, in three numbers that are measured in a second: products, memory, and starting operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

    from .cost import Cost
    from .precision import Precision

_SECONDS = 0.25  # of measuring for each rate
_CALLS = 200  # of an operation so small that only its start counts


class Rates(BaseModel):
    """flops: of a large matrix product a second. bytes: read and written a second by a copy that no cache holds.
    op_seconds: of starting an operation within a module. All are the best of several rounds: what a machine can do, if
    left alone."""

    model_config = ConfigDict(frozen=True)

    flops: float
    bytes: float
    op_seconds: float

    def seconds(self, cost: Cost, rows: float = 1.0) -> float:
        """What a call over `rows` sequences takes, each of this cost, if nothing overlaps."""
        moved = cost.weights + rows * (cost.bytes - cost.weights)
        return cost.ops * self.op_seconds + rows * cost.flops / self.flops + moved / self.bytes


def measure_rates(device: str, threads: int, precision: Precision) -> Rates:
    """Measure the rates of `device` for a case with so many threads."""
    import torch

    on_cuda = device.startswith("cuda")
    size, length = (4096, 2**28) if on_cuda else (768, 2**27)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), torch.device(device):
            a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
            source, target = torch.zeros(length // 4), torch.empty(length // 4)
            small, norm = torch.zeros(8), torch.nn.RMSNorm(8)
            product = _best(lambda: torch.mm(a, b), device)
            copy = _best(lambda: target.copy_(source), device)
            start = _best(lambda: _many(norm, small), device) / _CALLS
    finally:
        torch.set_num_threads(before)
    return Rates(flops=2 * size**3 / product, bytes=2 * length / copy, op_seconds=start)


def _many(module: Callable[[torch.Tensor], object], small: torch.Tensor) -> None:
    for _ in range(_CALLS):
        module(small)


def _best(work: Callable[[], object], device: str) -> float:
    """Least seconds of a call."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    work()
    wait()
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)
