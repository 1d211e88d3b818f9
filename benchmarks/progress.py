"""Telling how a run goes: bars on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .case import Case
from .runner import Reporter
from .runs import ResultLine

STYLES = {"ok": "green", "not_finite": "yellow", "timeout": "yellow", "out_of_memory": "yellow"}


def reporter_for(console: Console) -> Reporter:
    """Bars if `console` is a terminal, else plain lines."""
    return BarReporter(console) if console.is_terminal else LineReporter(console)


def status_text(status: str) -> str:
    """The status as rich markup; what is not listed is red."""
    style = STYLES.get(status, "red")
    return f"[{style}]{status}[/]"


def finished_line(case: Case, result: ResultLine) -> str:
    """One line of rich markup about a finished case."""
    error = f": {escape(result.error.splitlines()[0])}" if result.error else ""
    return f"{status_text(result.status)} {escape(case.title)} ({result.seconds:.1f} s){error}"


class TimeLeft:
    """How long the rest of a run may take: cases of one measure are alike, those of different ones are not."""

    def __init__(self) -> None:
        self._pending: dict[str, Case] = {}
        self._seconds: dict[str, list[float]] = {}
        self._begun = time.monotonic()

    def planned(self, pending: Sequence[Case]) -> None:
        self._pending = {case.id: case for case in pending}

    def finished(self, case: Case, result: ResultLine) -> None:
        del self._pending[case.id]
        self._seconds.setdefault(case.measure, []).append(result.seconds)

    def __str__(self) -> str:
        """`, about 3 min left`; empty if less than a minute, `at least` if some measure has no finished case yet."""
        ran = sum(sum(seconds) for seconds in self._seconds.values())
        side_by_side = max(1.0, ran / max(1e-9, time.monotonic() - self._begun))
        known = [case for case in self._pending.values() if case.measure in self._seconds]
        means = {measure: statistics.fmean(seconds) for measure, seconds in self._seconds.items()}
        left = sum(means[case.measure] / (1.0 if case.exclusive else side_by_side) for case in known)
        about = "about" if len(known) == len(self._pending) else "at least"
        return f", {about} {left / 60:.0f} min left" if left >= 60 else ""


class LineReporter:
    """A line when a case starts and when it ends, and in between one a minute."""

    interval_seconds = 60.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self._spoke: dict[str, float] = {}
        self._total = self._done = 0
        self._left = TimeLeft()

    def planned(self, pending: Sequence[Case], done: int) -> None:
        first, self._total, self._done = self._total == 0, len(pending) + done, done
        self._left.planned(pending)
        if first:
            already = f", {done} done already" if done else ""
            self._print(f"{self._total} cases{already}")

    def started(self, case: Case) -> None:
        self._spoke[case.id] = time.monotonic()
        self._print(f"start {escape(case.title)}")

    def progress(self, case: Case, fraction: float, message: str) -> None:
        now = time.monotonic()
        if now - self._spoke[case.id] >= self.interval_seconds:
            self._spoke[case.id] = now
            self._print(f"  {fraction:4.0%} {escape(case.title)}: {escape(message)}")

    def finished(self, case: Case, result: ResultLine) -> None:
        self._done += 1
        self._left.finished(case, result)
        self._print(f"[{self._done}/{self._total}{self._left}] ".replace("[", r"\[", 1) + finished_line(case, result))

    def end(self) -> None:
        self._spoke.clear()

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


class _CaseTimeLeft(TimeRemainingColumn):
    """Time left of a case. The bar over all of them has it in its message: its cases are not alike."""

    def render(self, task: Task) -> Text:
        return Text() if task.fields.get("all_cases") else super().render(task)


class BarReporter:
    """One bar over all cases, one under it for every case at work; finished cases scroll by above."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            _CaseTimeLeft(),
            TextColumn("{task.fields[message]}"),
            console=console,
            refresh_per_second=2,  # drawing takes time from what is measured
            speed_estimate_period=600,
        )
        self._left = TimeLeft()
        self._fractions: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._done = 0
        self._all: TaskID | None = None

    def planned(self, pending: Sequence[Case], done: int) -> None:
        self._done = done
        self._left.planned(pending)
        cases = len(pending) + done
        if self._all is None:
            self._progress.start()
            self._all = self._progress.add_task("[bold]all cases", total=cases, message="", all_cases=True)
        self._progress.update(self._all, total=cases)
        self._update_all()

    def started(self, case: Case) -> None:
        self._fractions[case.id] = 0.0
        self._bars[case.id] = self._progress.add_task(escape(case.title), total=1.0, message="")

    def progress(self, case: Case, fraction: float, message: str) -> None:
        self._fractions[case.id] = fraction
        self._progress.update(self._bars[case.id], completed=fraction, message=escape(message))
        self._update_all()

    def finished(self, case: Case, result: ResultLine) -> None:
        self._done += 1
        self._left.finished(case, result)
        del self._fractions[case.id]
        self._progress.remove_task(self._bars.pop(case.id))
        self._progress.console.print(finished_line(case, result), highlight=False)
        self._update_all()

    def end(self) -> None:
        self._progress.stop()

    def _update_all(self) -> None:
        assert self._all is not None, "planned comes first"
        total = self._progress.tasks[0].total or 0
        completed = self._done + sum(self._fractions.values())
        self._progress.update(self._all, completed=completed, message=f"{self._done}/{total:.0f}{self._left}")
