"""What a run is doing now, kept up to date by the runner, and those who are told of it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .case import Case, Plan
from .environment import utc_time
from .executors.base import News
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

    def of(self, pending: Mapping[tuple[str, bool], int]) -> tuple[float | None, bool]:
        """Seconds that cases take (None if no case has finished), and whether it is those of some measures only.

        pending: how many there are by measure and whether they are exclusive.
        """
        ran = sum(map(sum, self._seconds.values()))
        side_by_side = max(1.0, ran / max(1e-9, time.monotonic() - self._begun))
        means = {measure: statistics.fmean(seconds) for measure, seconds in self._seconds.items()}
        left = sum(
            count * means[measure] / (1.0 if exclusive else side_by_side)
            for (measure, exclusive), count in pending.items()
            if measure in means
        )
        unknown = any(count and measure not in means for (measure, _), count in pending.items())
        return (left if means else None), unknown


@dataclass
class _Work:
    """What is known of a case at work; times are of `time.monotonic`."""

    case: Case
    started: float
    news: News
    heard: list[tuple[float, float]] = field(default_factory=list)  # time and fraction of the first rise and the last

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
        self._pending: Counter[tuple[str, bool]] = Counter()
        self._work: dict[str, _Work] = {}
        self._left = TimeLeft()

    def update(self, plan: Plan, results: Mapping[str, ResultLine]) -> None:
        """Take over the cases that are known now, and which of them have a result."""
        self.cases, self.more_may_follow = len(plan.cases), not plan.final
        self.done = Counter(results[case.id].status for case in plan.cases if case.id in results)
        self._pending = Counter((case.measure, case.exclusive) for case in plan.cases if case.id not in results)

    def start(self, case: Case) -> None:
        """A case is given to the executor."""
        self._work[case.id] = _Work(case, time.monotonic(), News(case.id))

    def hear(self, news: News) -> None:
        """A case at work has said something."""
        work = self._work[news.case]
        if news.fraction > 0 and news.fraction != work.news.fraction:
            work.heard = [*work.heard[:1], (time.monotonic(), news.fraction)]
        work.news = news

    def leave(self, case: Case) -> None:
        """A case is at work no more."""
        del self._work[case.id]

    def finished(self, case: Case, result: ResultLine) -> None:
        """A case has a result."""
        self.done[result.status] += 1
        self._pending[case.measure, case.exclusive] -= 1
        self._left.finished(case, result.seconds)

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
            to_do=self._pending.total(),
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
    case, news = work.case, work.news
    return CaseAtWork(
        case=case.id,
        title=case.title,
        layout=case.label,
        measure=case.measure,
        seed=case.seed,
        exclusive=case.exclusive,
        stage=news.doing.stage,
        values=dict(news.doing.values),
        fraction=news.fraction,
        seconds=time.monotonic() - work.started,
        seconds_left=work.seconds_left(),
        resident_bytes=news.resident_bytes,
        cuda_bytes=news.cuda_bytes,
    )
