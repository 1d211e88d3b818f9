"""Telling how a run goes: bars on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


class LineReporter:
    """A line when a case starts and when it ends, and in between one a minute."""

    interval_seconds = 60.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = time.monotonic()
        self._spoke: dict[str, float] = {}
        self._total = self._done = self._ran = 0

    def begin(self, cases: int, done: int) -> None:
        self._total, self._done, self._begun = cases, done, time.monotonic()
        already = f", {done} done already" if done else ""
        self._print(f"{cases} cases{already}")

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
        self._ran += 1
        left = (time.monotonic() - self._begun) / self._ran * (self._total - self._done)
        remaining = f", about {left / 60:.0f} min left" if left >= 60 else ""
        self._print(f"[{self._done}/{self._total}{remaining}] ".replace("[", r"\[", 1) + finished_line(case, result))

    def end(self) -> None:
        self._spoke.clear()

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


class BarReporter:
    """One bar over all cases, one under it for every case at work; finished cases scroll by above."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            refresh_per_second=2,  # drawing takes time from what is measured
            speed_estimate_period=600,
        )
        self._fractions: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._done = 0
        self._all: TaskID | None = None

    def begin(self, cases: int, done: int) -> None:
        self._done = done
        self._progress.start()
        self._all = self._progress.add_task("[bold]all cases", total=cases, completed=done, message=f"{done}/{cases}")

    def started(self, case: Case) -> None:
        self._fractions[case.id] = 0.0
        self._bars[case.id] = self._progress.add_task(escape(case.title), total=1.0, message="")

    def progress(self, case: Case, fraction: float, message: str) -> None:
        self._fractions[case.id] = fraction
        self._progress.update(self._bars[case.id], completed=fraction, message=escape(message))
        self._update_all()

    def finished(self, case: Case, result: ResultLine) -> None:
        self._done += 1
        del self._fractions[case.id]
        self._progress.remove_task(self._bars.pop(case.id))
        self._progress.console.print(finished_line(case, result), highlight=False)
        self._update_all()

    def end(self) -> None:
        self._progress.stop()

    def _update_all(self) -> None:
        assert self._all is not None, "begin comes first"
        total = self._progress.tasks[0].total or 0
        completed = self._done + sum(self._fractions.values())
        self._progress.update(self._all, completed=completed, message=f"{self._done}/{total:.0f}")
