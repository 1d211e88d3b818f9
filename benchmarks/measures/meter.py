"""The meters: seconds that a piece of work takes, and bytes that it allocates."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ..doing import Doing, Progress
from .outputs import require_finite

MEMORY_EVENT = "[memory]"  # the profiler's name for an allocation or a release

Look = Callable[[Any], None]  # at what a piece of work returned
Clock = Callable[[Callable[[], object], Look], float]  # seconds of a call; the look at its result is not counted

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h

WARMUP_ROUNDS = (
    2  # at the least, beside the first call: what repeats is captured by the second and replayed by the third
)
MAX_WARMUP_ROUNDS = 10
MAX_ROUNDS = 100
STABLE = 0.1  # warm-up ends when two rounds in a row differ by less than this share
MIN_ROUND_SECONDS = 0.01  # shorter work is repeated within a round, beyond the clock's and the scheduler's noise


@dataclass(frozen=True)
class Timing:
    """Seconds of a piece of work.

    first_seconds: of the first call of all, which compiles kernels, allocates and fills caches. samples: one number for
    each round after the warm-up. ran: op -> the backends that the first call took, where that was looked at.
    """

    first_seconds: float
    samples: list[float]
    ran: dict[str, list[str]] = field(default_factory=dict)

    def per(self, units: int) -> Timing:
        """The same of one of the `units` that the work consists of."""
        return Timing(self.first_seconds / units, [seconds / units for seconds in self.samples])


@dataclass(frozen=True)
class MemoryReading:
    """Bytes above what was allocated before.

    peak_bytes: the most at any time. held_bytes: at the end, while the result is alive. method: how it was read.
    """

    peak_bytes: int
    held_bytes: int
    method: str


def keep_freed_memory(device: torch.device) -> None:
    """For the rest of the process, memory that is freed stays with it, as it does on a GPU.

    Else every large tensor is new pages from the operating system, and what is timed is how fast those come: on a
    virtual machine that gives free pages back to its host, twenty times the work itself, and not the same every time.
    CPU and glibc only; elsewhere nothing happens.
    """
    if device.type == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)


def _pass_over(result: Any) -> None:
    """Look at nothing."""


def time_rounds(
    work: Callable[[Any], object],
    device: torch.device,
    *,
    rounds: int,
    budget_seconds: float,
    prepare: Callable[[], Any] | None = None,
    tokens: int = 0,
    progress: Progress = lambda fraction, doing: None,
) -> Timing:
    """Seconds of `work(prepare())`, `prepare` not counted: one number a round, once rounds have come to agree.

    At least two rounds warm up after the first call, which is compared with none, since it may compile. Then at least
    `rounds` rounds, and more (at most 100) while they fit in `budget_seconds`. CUDA work is timed by device events, CPU
    work by `time.perf_counter`. tokens: of a call, told to `progress` as a rate. Raises `NotFiniteError` if what the
    first or the last call returned is not finite, see `require_finite`.
    """
    clock = round_clock(device)

    def run(calls: int, look: Look = _pass_over) -> float:
        prepared = prepare() if prepare is not None else None
        return clock(lambda: _repeat(work, prepared, calls), look) / calls

    progress(0.0, "first call")
    first = run(1, lambda result: require_finite(result, "the first call"))
    warmup: list[float] = []
    start = time.perf_counter()
    while len(warmup) < WARMUP_ROUNDS or (
        len(warmup) < MAX_WARMUP_ROUNDS
        and abs(warmup[-1] - warmup[-2]) >= STABLE * warmup[-2]
        and time.perf_counter() - start < budget_seconds
    ):
        progress(0.0, _round("warm-up, round", warmup, tokens))
        warmup.append(run(1))
    # what is prepared serves one call only
    calls = 1 if prepare is not None else max(1, math.ceil(MIN_ROUND_SECONDS / max(warmup[-1], 1e-7)))

    samples: list[float] = []
    last: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(samples) < rounds or (len(samples) < MAX_ROUNDS and time.perf_counter() - start < budget_seconds):
            progress(min(1.0, len(samples) / rounds), _round("round", samples, tokens))
            last.clear()  # nothing of a round before is alive in the next
            samples.append(run(calls, last.append))
    finally:
        gc.enable()
    require_finite(last, "the last call")
    return Timing(first, samples)


def warmed_up(once: float, rounds: float) -> float:
    """Seconds of all that is timed, by those of one call and of the rounds: the first call and warm-up are added."""
    return (1 + WARMUP_ROUNDS) * once + rounds


def _round(stage: str, samples: list[float], tokens: int) -> Doing:
    """The round that comes next, and how fast the one before was."""
    values = {"tokens/s": tokens / max(samples[-1], 1e-9)} if samples and tokens else {}
    return Doing(f"{stage} {len(samples) + 1}", values)


def _repeat(work: Callable[[Any], object], prepared: Any, calls: int) -> object:
    for _ in range(calls - 1):
        work(prepared)
    return work(prepared)


def quartiles(samples: list[float]) -> dict[str, float]:
    """`median`, `q1` and `q3` of `samples`."""
    q1, median, q3 = np.percentile(samples, [25, 50, 75]).tolist()
    return {"median": median, "q1": q1, "q3": q3}


def measure_memory(work: Callable[[], object], device: torch.device, look: Look = _pass_over) -> MemoryReading:
    """Run `work` once and read what it allocates on `device`; afterwards `look` at what it returned.

    CUDA: the statistics of torch's caching allocator. CPU: every allocation and release of torch's CPU allocator, as
    the profiler records them; exact for tensors, blind to scratch memory that a library gets from elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        return _cuda_memory(work, device, look)
    if device.type == "cpu":
        return _cpu_memory(work, look)
    raise ValueError(f"memory cannot be measured on {device}; use cpu or cuda")


def _cuda_memory(work: Callable[[], object], device: torch.device, look: Look) -> MemoryReading:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = work()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device) - before
    peak = torch.cuda.max_memory_allocated(device) - before
    look(result)
    del result
    return MemoryReading(peak, held, "torch.cuda allocator statistics")


def _cpu_memory(work: Callable[[], object], look: Look) -> MemoryReading:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        result = work()
    assert recording.profiler is not None
    events = [event for event in recording.profiler.kineto_results.events() if event.name() == MEMORY_EVENT]
    events.sort(key=lambda event: event.start_ns())
    allocated = np.cumsum([0, *(event.nbytes() for event in events)])
    look(result)
    del result
    return MemoryReading(int(allocated.max()), int(allocated[-1]), "torch.profiler CPU allocator events")


def round_clock(device: torch.device) -> Clock:
    if device.type == "cuda":
        return lambda work, look: _cuda_seconds(work, look, device)
    if device.type == "cpu":
        return _cpu_seconds
    raise ValueError(f"time cannot be measured on {device}; use cpu or cuda")


def _cpu_seconds(work: Callable[[], object], look: Look) -> float:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    look(result)
    del result  # alive until here, so that releasing it is not timed
    return seconds


def _cuda_seconds(work: Callable[[], object], look: Look, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = work()
        end.record()
        end.synchronize()
    look(result)
    del result
    return start.elapsed_time(end) / 1000
