"""What a run is doing now, kept up to date by the runner, and those who are told of it."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from .case import Case, Plan
from .doing import Doing
from .environment import utc_time
from .runs import ResultLine
from .status import CaseAtWork, RunStatus

# Seconds between two looks at a run, or two drawings of it: both take time from what is measured.
PAUSE, PAUSE_EXCLUSIVE = 0.5, 2.0


class TimeLeft:
    """How long the rest of a run may take: cases of one measure are alike, those of different ones are not."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._begun = time.monotonic()

    def finished(self, case: Case, seconds: float) -> None:
        self._seconds.setdefault(case.measure, []).append(seconds)

    def of(self, pending: Mapping[str, Case]) -> tuple[float | None, bool]:
        """Seconds that the cases take (None if no case has finished), and whether it is those of some measures only."""
        ran = sum(sum(seconds) for seconds in self._seconds.values())
        side_by_side = max(1.0, ran / max(1e-9, time.monotonic() - self._begun))
        known = [case for case in pending.values() if case.measure in self._seconds]
        means = {measure: statistics.fmean(seconds) for measure, seconds in self._seconds.items()}
        left = sum(means[case.measure] / (1.0 if case.exclusive else side_by_side) for case in known)
        return (left if means else None), len(known) < len(pending)


@dataclass
class _Work:
    """What is known of a case at work; times are of `time.monotonic`."""

    case: Case
    pid: int
    started: float
    doing: Doing = field(default_factory=lambda: Doing("start"))
    fraction: float = 0.0
    heard: list[tuple[float, float]] = field(default_factory=list)  # time and fraction of the first news and the last
    resident_bytes: int = 0
    cuda_bytes: int | None = None

    def seconds_left(self) -> float | None:
        """From the rise of the fraction since the first news: what came before, or was resumed, is no guide. None if it
        did not rise, or should have come to its end by now."""
        if len(self.heard) < 2:
            return None
        (since, low), (until, high) = self.heard
        if high <= low:
            return None
        left = (1 - high) * (until - since) / (high - low) - (time.monotonic() - until)
        return left if left > 0 else None


class LiveRun:
    """What a run is doing now, for the runner to keep up to date and for its reporters to read."""

    def __init__(self) -> None:
        self.started = utc_time()
        self.cases = 0
        self.done: Counter[str] = Counter()
        self.more_may_follow = True
        self._pending: dict[str, Case] = {}
        self._work: dict[str, _Work] = {}
        self._left = TimeLeft()
        self._looked = -1e9

    def update(self, plan: Plan, results: Mapping[str, ResultLine]) -> None:
        """Take over the cases that are known now, and which of them have a result."""
        self.cases, self.more_may_follow = len(plan.cases), not plan.final
        self.done = Counter(results[case.id].status for case in plan.cases if case.id in results)
        self._pending = {case.id: case for case in plan.cases if case.id not in results}

    def start(self, case: Case, pid: int) -> None:
        self._work[case.id] = _Work(case, pid, time.monotonic())

    def hear(self, case: Case, fraction: float, doing: Doing, cuda_bytes: int | None) -> None:
        """A case at work has said something."""
        work, news = self._work[case.id], (time.monotonic(), fraction)
        work.fraction, work.doing, work.cuda_bytes = fraction, doing, cuda_bytes
        work.heard = [*work.heard[:1], news]

    def finish(self, case: Case, seconds: float) -> None:
        del self._work[case.id]
        self._left.finished(case, seconds)

    def look(self) -> None:
        """Read the memory of the cases at work, unless that was done a moment ago."""
        if time.monotonic() - self._looked >= max(1.0, self.pause):
            for work in self._work.values():
                work.resident_bytes = _resident_bytes(work.pid)
            self._looked = time.monotonic()

    @property
    def at_work(self) -> set[str]:
        """The ids of the cases at work."""
        return set(self._work)

    @property
    def exclusive(self) -> bool:
        """Whether a case is at work beside which nothing else may run."""
        return any(work.case.exclusive for work in self._work.values())

    @property
    def pause(self) -> float:
        """Seconds that a reporter lets pass before it draws or writes again."""
        return PAUSE_EXCLUSIVE if self.exclusive else PAUSE

    def status(self) -> RunStatus:
        """All of it at this moment."""
        seconds_left, at_least = self._left.of(self._pending)
        return RunStatus(
            pid=os.getpid(),
            host=platform.node(),
            started=self.started,
            updated=utc_time(),
            done=dict(self.done),
            to_do=len(self._pending),
            more_may_follow=self.more_may_follow,
            seconds_left=seconds_left,
            at_least=at_least,
            at_work=[_at_work(work) for work in self._work.values()],
        )


class Reporter:
    """Who is told how a run goes. All of it may be overridden; what is not is passed over."""

    def begin(self, live: LiveRun) -> None:
        """The cases are known, and none has started. live: kept up to date from now on."""

    def before(self, case: Case) -> None:
        """A case is about to start, and waits until this returns."""

    def look(self) -> None:
        """Something may have changed. Called often: see `Pace`."""

    def finished(self, case: Case, result: ResultLine) -> None:
        """A case has a result."""

    def end(self) -> None:
        """The run ends, for whatever reason; called even if it never began."""


class Pace:
    """When to draw or write again: cases started or ended, or at least `seconds` went by, more beside what is timed."""

    def __init__(self, live: LiveRun, seconds: float = PAUSE) -> None:
        self._live, self._seconds = live, seconds
        self._last, self._cases = -1e9, set[str]()

    def due(self) -> bool:
        """Whether it is time; if so, it is taken as done."""
        now, cases = time.monotonic(), self._live.at_work
        if cases == self._cases and now - self._last < max(self._seconds, self._live.pause):
            return False
        self._last, self._cases = now, cases
        return True


class Several(Reporter):
    """Tells all of `reporters`, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def begin(self, live: LiveRun) -> None:
        for reporter in self.reporters:
            reporter.begin(live)

    def before(self, case: Case) -> None:
        for reporter in self.reporters:
            reporter.before(case)

    def look(self) -> None:
        for reporter in self.reporters:
            reporter.look()

    def finished(self, case: Case, result: ResultLine) -> None:
        for reporter in self.reporters:
            reporter.finished(case, result)

    def end(self) -> None:
        for reporter in self.reporters:
            reporter.end()


def _at_work(work: _Work) -> CaseAtWork:
    case = work.case
    return CaseAtWork(
        case=case.id,
        title=case.title,
        layout=case.label,
        measure=case.measure,
        seed=case.seed,
        exclusive=case.exclusive,
        stage=work.doing.stage,
        values=dict(work.doing.values),
        fraction=work.fraction,
        seconds=time.monotonic() - work.started,
        seconds_left=work.seconds_left(),
        resident_bytes=work.resident_bytes,
        cuda_bytes=work.cuda_bytes,
    )


def _resident_bytes(pid: int) -> int:
    """Of a process and all that it started; what they share counts for each."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total
