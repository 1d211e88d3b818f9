"""What an executor costs a case that does nothing: `python -m mixerzoo.benchmarks.executors_overhead [CASES]`.

The same cases on this machine, once as its own processes and once through a Ray of one machine, in turn; the time is
that of all cases divided by their number, without the start of the executor.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Plan
from .executors.base import Executor
from .executors.local import LocalExecutor
from .executors.ray import RayExecutor
from .limits import Limits
from .live import LiveRun, Reporter
from .runner import execute
from .runs import Run
from .worker import Channel

_ROUNDS = 3


def nothing(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """What each case runs."""
    return {}


class _Clock(Reporter):
    """Notes when the first case of a run has ended, and when all have: the first waits until all is imported."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def begin(self, live: LiveRun) -> None:
        self.ends.clear()

    def finished(self, case: Case, result: Any) -> None:
        assert result.status == "ok", result
        self.ends.append(time.perf_counter())


def seconds_per_case(executor: Executor, limits: Limits, cases: int) -> float:
    """Of `cases` cases that do nothing, the first tenth not counted."""
    clock = _Clock()
    plan = Plan(tuple(Case("nothing", "-", {}, "nothing", {}, seed, "cpu", False) for seed in range(cases)))
    with tempfile.TemporaryDirectory() as folder:
        execute(lambda _: plan, Run(Path(folder) / "run"), {"name": "overhead"}, limits, clock, executor, device="cpu")
    warm = cases // 10
    return (clock.ends[-1] - clock.ends[warm]) / (len(clock.ends) - 1 - warm)


def main(cases: int) -> None:
    """Print the milliseconds per case of each executor, and their ratio."""
    limits = Limits()
    makers: dict[str, Callable[[], Executor]] = {
        "local": lambda: LocalExecutor(limits, "cpu", nothing),
        "ray": lambda: RayExecutor(None, limits, "cpu", nothing),
    }
    found: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(_ROUNDS):
        for name, make in makers.items():
            found[name].append(1000 * seconds_per_case(make(), limits, cases))
            print(f"{name}: {found[name][-1]:.1f} ms a case", flush=True)
    ratios = [ray / local for local, ray in zip(found["local"], found["ray"])]
    medians = {f"{name}_ms": round(statistics.median(times), 2) for name, times in found.items()}
    print(json.dumps({"cases": cases, **medians, "ray_over_local": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    from . import executors_overhead  # by its name, under which other processes find `nothing`

    executors_overhead.main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
