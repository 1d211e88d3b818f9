"""Pieces of work timed in turn: one process, round by round, so that what slows the machine down slows all of them."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...mixers.ops.dispatch import record_backends
from ..doing import Doing, Progress
from ..runs import ResultLine
from .base import Measure
from .entry import Entry
from .meter import (
    MIN_ROUND_SECONDS,
    WARMUP_ROUNDS,
    Clock,
    Look,
    Timing,
    measure_memory,
    quartiles,
    round_clock,
    warmed_up,
)
from .outputs import require_finite


@dataclass(frozen=True)
class Contender:
    """What is timed: `work(prepare())`, `prepare` not counted.

    backend, mode, tokens: what it is called in the results. units: its seconds are divided by this many.
    slow: it runs in few rounds, and without a warm-up. opaque: what it returns is not looked at; else what the first
    and the last call return has to be finite, see `require_finite`.
    """

    backend: str
    mode: str
    tokens: int
    work: Callable[[Any], object]
    prepare: Callable[[], Any] | None = None
    units: int = 1
    slow: bool = False
    opaque: bool = False

    @property
    def title(self) -> str:
        """One short line for people."""
        return f"{self.backend}, {self.mode}, {self.tokens:,} tokens"

    def look(self, result: Any) -> None:
        """Raise `NotFiniteError` if what a call returned is not finite."""
        if not self.opaque:
            require_finite(result, self.title)


class Contest(Measure):
    """A measure of several things in turn: its metrics have `rows`, see `row`, and `ratios` of them, see `bars`."""

    exclusive: ClassVar[bool] = True

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        metrics = result.metrics or {}
        for row in metrics["rows"]:
            title = f"{result.measure.replace('_', ' ')}, {row['mode']}, {row['backend']}"
            yield Entry(f"{title}: ms (median) by length", row["tokens"], 1e3 * row["median"])
            yield Entry(f"{title}: peak MB above what was there, by length", row["tokens"], row["peak_bytes"] / 1e6)
        for ratio in metrics["ratios"]:
            if ratio["bar"] is not None:
                length = f", {ratio['tokens']} tokens" if ratio["tokens"] else ""
                what = f"{ratio['kind']}, {ratio['mode']}{length}, {ratio['backend']}"
                yield Entry(
                    f"bar {ratio['bar']:g} {'met' if ratio['met'] else 'NOT met'}: {what}", "value", ratio["value"]
                )


def in_turn_seconds(once: float, rounds: int, *, repeats: bool = True) -> float:
    """Seconds of all that a contender does, by those of its call: the first one, the warm-up, its rounds, and one under
    the meter of memory. repeats: work too short for the clock is repeated."""
    return warmed_up(once, rounds * (max(once, MIN_ROUND_SECONDS) if repeats else once)) + once


def time_in_turn(
    contenders: Sequence[Contender], device: torch.device, *, rounds: int, slow_rounds: int, progress: Progress
) -> list[Timing]:
    """Seconds of every contender: one number for each of `rounds` rounds (of `slow_rounds` for the slow ones).

    In a round each runs once, one after the other; work too short for the clock is repeated within its turn. Before,
    each has warmed up by two calls after its first; the first round of a slow one is its first call.
    """
    clock = round_clock(device)
    timings: dict[int, Timing] = {}
    repeats = [1] * len(contenders)
    for i, contender in enumerate(contenders):
        if not contender.slow:
            progress(0.0, f"warm-up: {contender.title}")
            timings[i] = _first_call(contender, clock)
            repeats[i] = _warm_up(contender, clock)
    try:
        for number in range(rounds):
            gc.collect()  # within what is timed, a collection would be one contender's bad luck
            gc.disable()
            for i, contender in enumerate(contenders):
                if contender.slow and number >= slow_rounds:
                    continue
                done = number + i / len(contenders)
                last = {"ms": 1000 * timings[i].samples[-1]} if number else {}
                progress(done / rounds, Doing(f"round {number + 1}: {contender.title}", last))
                if i in timings:
                    timings[i].samples.append(_seconds(contender, clock, repeats[i]))
                else:
                    timings[i] = _first_call(contender, clock)
                    timings[i].samples.append(timings[i].first_seconds)
    finally:
        gc.enable()
    return [timings[i] for i in range(len(contenders))]


def peaks_in_turn(contenders: Sequence[Contender], device: torch.device, progress: Progress) -> list[dict[str, Any]]:
    """What one call of each allocates at the peak, above what was there before: `peak_bytes`, and `method`."""
    readings = []
    for done, contender in enumerate(contenders):
        progress(done / len(contenders), f"memory: {contender.title}")
        prepared = contender.prepare() if contender.prepare is not None else None
        reading = measure_memory(functools.partial(contender.work, prepared), device, contender.look)
        readings.append({"peak_bytes": reading.peak_bytes, "method": reading.method})
    return readings


def row(contender: Contender, timing: Timing, **more: Any) -> dict[str, Any]:
    """A contender's line of the metrics: what it is, `median`, `q1` and `q3` of its seconds, `rounds`, `samples`,
    `first_call_seconds`, and `ran`, the backends that it took: op -> names."""
    identity = {"backend": contender.backend, "mode": contender.mode, "tokens": contender.tokens, "ran": timing.ran}
    rounds = {"rounds": len(timing.samples), "samples": timing.samples, "first_call_seconds": timing.first_seconds}
    return {**identity, **quartiles(timing.samples), **rounds, **more}


def _first_call(contender: Contender, clock: Clock) -> Timing:
    """What the first call takes, in seconds and backends, without samples so far."""
    with record_backends() as ran:
        seconds = _seconds(contender, clock, 1, contender.look)
    return Timing(seconds, [], {op: sorted(names) for op, names in ran.items()})


def _warm_up(contender: Contender, clock: Clock) -> int:
    """Calls that bring a contender to its usual time; returns how often to call it in its turn."""
    *_, last = (_seconds(contender, clock, 1) for _ in range(WARMUP_ROUNDS))
    if contender.prepare is not None:  # what is prepared serves one call only
        return 1
    return max(1, math.ceil(MIN_ROUND_SECONDS / max(last * contender.units, 1e-7)))


def _seconds(contender: Contender, clock: Clock, calls: int, look: Look = lambda result: None) -> float:
    """Of one of a contender's units, the mean over so many calls."""
    prepared = contender.prepare() if contender.prepare is not None else None
    return clock(functools.partial(_repeat, contender, prepared, calls), look) / calls / contender.units


def _repeat(contender: Contender, prepared: Any, calls: int) -> object:
    for _ in range(calls - 1):
        contender.work(prepared)
    return contender.work(prepared)
