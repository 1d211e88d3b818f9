"""Pieces of work timed in turn: one process, round by round, so that what slows the machine down slows all of them."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..training import Progress
from .meter import MIN_ROUND_SECONDS, measure_memory, quartiles, round_clock

_LONG_SECONDS = 2.0  # a call as long as this warms up by itself


@dataclass(frozen=True)
class Contender:
    """What is timed: `work(prepare())`, `prepare` not counted.

    backend, mode, tokens: what it is called in the results. units: its seconds are divided by this many.
    slow: it runs in few rounds, and without a warm-up.
    """

    backend: str
    mode: str
    tokens: int
    work: Callable[[Any], object]
    prepare: Callable[[], Any] | None = None
    units: int = 1
    slow: bool = False

    @property
    def title(self) -> str:
        """One short line for people."""
        return f"{self.backend}, {self.mode}, {self.tokens:,} tokens"


def time_in_turn(
    contenders: Sequence[Contender], device: torch.device, *, rounds: int, slow_rounds: int, progress: Progress
) -> list[list[float]]:
    """Seconds of every contender: one number for each of `rounds` rounds (of `slow_rounds` for the slow ones).

    In a round each runs once, one after the other; work too short for the clock is repeated within its turn. The
    others have warmed up by two calls, or one long one; the first round of a slow one may be its first call.
    """
    clock = round_clock(device)
    repeats = [1 if c.slow or c.prepare else _repeats(c, clock, progress) for c in contenders]
    samples: list[list[float]] = [[] for _ in contenders]
    try:
        for number in range(rounds):
            gc.collect()  # within what is timed, a collection would be one contender's bad luck
            gc.disable()
            for i, contender in enumerate(contenders):
                if contender.slow and number >= slow_rounds:
                    continue
                done = number + i / len(contenders)
                progress(done / rounds, f"round {number + 1}: {contender.title}")
                prepared = contender.prepare() if contender.prepare is not None else None
                seconds = clock(functools.partial(_repeat, contender, prepared, repeats[i]))
                samples[i].append(seconds / repeats[i] / contender.units)
    finally:
        gc.enable()
    return samples


def peaks_in_turn(contenders: Sequence[Contender], device: torch.device, progress: Progress) -> list[dict[str, Any]]:
    """What one call of each allocates at the peak, above what was there before: `peak_bytes`, and `method`."""
    readings = []
    for done, contender in enumerate(contenders):
        progress(done / len(contenders), f"memory: {contender.title}")
        prepared = contender.prepare() if contender.prepare is not None else None
        reading = measure_memory(functools.partial(contender.work, prepared), device)
        readings.append({"peak_bytes": reading.peak_bytes, "method": reading.method})
    return readings


def row(contender: Contender, samples: list[float], **more: Any) -> dict[str, Any]:
    """A contender's line of the metrics: what it is, `median`, `q1` and `q3` of its seconds, `rounds` and `samples`."""
    identity = {"backend": contender.backend, "mode": contender.mode, "tokens": contender.tokens}
    return {**identity, **quartiles(samples), "rounds": len(samples), "samples": samples, **more}


def _repeats(contender: Contender, clock: Callable[[Callable[[], object]], float], progress: Progress) -> int:
    """How often to call short work in its turn; this is its warm-up as well."""
    progress(0.0, f"warm-up: {contender.title}")
    seconds = clock(lambda: contender.work(None))
    if seconds < _LONG_SECONDS:
        seconds = clock(lambda: contender.work(None))
    return max(1, math.ceil(MIN_ROUND_SECONDS / max(seconds, 1e-7)))


def _repeat(contender: Contender, prepared: Any, calls: int) -> object:
    for _ in range(calls - 1):
        contender.work(prepared)
    return contender.work(prepared)
