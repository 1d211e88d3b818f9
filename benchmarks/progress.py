"""Telling how a run goes: a table on a terminal, one plain line a case elsewhere, `status.json` for other processes."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .case import Case
from .environment import utc_time
from .forecast import keep_forecast
from .live import LiveRun, Pace, Reporter
from .runs import ResultLine, Run, write_atomically
from .status import STATUS_FILE, CaseAtWork, RunStatus

if TYPE_CHECKING:
    from .estimate import Estimate

STYLES = {"ok": "green", "not_finite": "yellow", "timeout": "yellow", "out_of_memory": "yellow"}


def reporter_for(console: Console) -> Reporter:
    """A live table if `console` is a terminal, else plain lines."""
    return TableReporter(console) if console.is_terminal else LineReporter(console)


def complain(message: str, style: str = "red") -> None:
    """Say what is wrong, on stderr."""
    text = "\n".join(map(shown, message.split("\n")))
    Console(stderr=True).print(f"[{style}]{text}[/]", highlight=False, soft_wrap=True)


def shown(text: str) -> str:
    """Text from a run as rich markup: it stays text, and moves no cursor."""
    return escape("".join(character if character.isprintable() else "�" for character in text))


def status_text(status: str) -> str:
    """The status as rich markup; what is not listed is red."""
    style = STYLES.get(status, "red")
    return f"[{style}]{status}[/]"


def finished_line(case: Case, result: ResultLine) -> str:
    """One line of rich markup about a finished case."""
    error = f": {shown(first_line(result.error))}" if result.error else ""
    return f"{status_text(result.status)} {shown(case.title)} ({result.seconds:.1f} s){error}"


def first_line(error: str) -> str:
    """Of what went wrong."""
    return next(iter(error.splitlines()), "")


def time_left(seconds: float | None, at_least: bool) -> str:
    """`about 3 min left`; empty if less than a minute or not known."""
    if seconds is None or seconds < 60:
        return ""
    return f"{'at least' if at_least else 'about'} {seconds / 60:.0f} min left"


def clock(seconds: float | None) -> str:
    """`2:05`, `1:00:07`; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def totals(status: RunStatus) -> str:
    """`12 done, 1 failed, 7 to do, about 3 min left`, as rich markup."""
    ok = status.done.get("ok", 0)
    parts = [f"[bold]{ok}[/] done"]
    if failed := sum(status.done.values()) - ok:
        parts.append(f"[red]{failed} failed[/]")
    parts.append(f"[bold]{status.to_do}[/] to do{' (more may follow)' if status.more_may_follow else ''}")
    return ", ".join([*parts, *filter(None, [time_left(status.seconds_left, status.at_least)])])


def work_table(status: RunStatus, rows: int | None = None) -> RenderableType:
    """A row for each case at work (at most `rows`), and the totals under it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", expand=True)
    table.add_column("case", ratio=4, min_width=14, overflow="fold")
    table.add_column("doing", ratio=3, min_width=14, overflow="fold")
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("value", no_wrap=True, min_width=15)
    for name in ("time", "left", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in status.at_work[:rows]:
        table.add_row(*_work_row(case))
    below = len(status.at_work) - len(status.at_work[:rows])
    more = [Text(f"and {below} more at work", style="dim")] if below else []
    return Group(*([table] if status.at_work else []), *more, Text.from_markup(totals(status)))


def _work_row(case: CaseAtWork) -> list[str]:
    memory = decimal(case.resident_bytes) if case.resident_bytes else ""
    if case.cuda_bytes is not None:
        memory += f"\nCUDA\n{decimal(case.cuda_bytes)}"
    fraction = f"{case.fraction:.0%}" if case.fraction else ""
    numbers = shown(case.doing.numbers).replace(", ", "\n")
    times = clock(case.seconds), clock(case.seconds_left)
    return [shown(case.title), shown(case.stage), fraction, numbers, *times, memory]


class TableReporter(Reporter):
    """A table of the cases at work, drawn anew in its place; finished cases scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # drawn by the runner itself and not by a thread: it knows when drawing disturbs what is timed
        self._display = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, live: LiveRun) -> None:
        self._live, self._pace = live, Pace(live)
        done = sum(live.done.values())
        already = f", {done} done already" if done else ""
        self._console.print(f"{live.cases} cases{already}", highlight=False)
        self._display.start()

    def look(self) -> None:
        if self._pace.due():
            # a case takes up to three lines where the terminal is narrow
            lines = 1 if self._console.width >= 120 else 3
            rows = max(1, (self._console.height - 4) // lines)
            self._display.update(work_table(self._live.status(), rows), refresh=True)

    def finished(self, case: Case, result: ResultLine) -> None:
        self._console.print(finished_line(case, result), highlight=False)

    def end(self) -> None:
        self._display.stop()


class LineReporter(Reporter):
    """A line when a case ends, and one a minute of each that takes longer, so that a log shows that it goes on."""

    interval_seconds = 60.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told: Counter[str] = Counter()

    def begin(self, live: LiveRun) -> None:
        self._live, self._pace = live, Pace(live, 1.0)
        done = sum(live.done.values())
        self._print(f"{live.cases} cases{f', {done} done already' if done else ''}")

    def look(self) -> None:
        for case in self._live.status().at_work if self._pace.due() else ():
            if case.seconds >= (self._told[case.case] + 1) * self.interval_seconds:
                self._told[case.case] = int(case.seconds // self.interval_seconds)
                self._print(f"  {case.fraction:4.0%} {shown(case.title)}: {shown(str(case.doing))}")

    def finished(self, case: Case, result: ResultLine) -> None:
        status = self._live.status()
        left = time_left(status.seconds_left, status.at_least)
        so_far = f"{sum(status.done.values())}/{self._live.cases}{f', {left}' if left else ''}"
        self._print(rf"\[{so_far}] " + finished_line(case, result))

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


class StatusFile(Reporter):
    """Keeps `status.json` in the folder of `run`. again: the command that goes on with the run."""

    def __init__(self, run: Run, again: Sequence[str]) -> None:
        self._path, self._again = run.folder / STATUS_FILE, {"again": list(again), "directory": os.getcwd()}
        self._live: LiveRun | None = None

    def begin(self, live: LiveRun) -> None:
        self._live, self._pace = live, Pace(live, 1.0)
        self._write()

    def look(self) -> None:
        if self._pace.due():
            self._write()

    def end(self) -> None:
        self._write(ended=utc_time())

    def _write(self, ended: str | None = None) -> None:
        if self._live is not None:
            status = self._live.status().model_copy(update={**self._again, "ended": ended})
            with contextlib.suppress(OSError):  # what tells of a run must not stop it
                write_atomically(self._path, status.model_dump_json(indent=1) + "\n")


class KeepForecast(Reporter):
    """Writes down what was expected of `run` at its first start; None: nothing was."""

    def __init__(self, run: Run, estimate: Estimate | None) -> None:
        self._run, self._estimate = run, estimate

    def begin(self, live: LiveRun) -> None:
        if self._estimate is not None:
            with contextlib.suppress(OSError):  # as above
                keep_forecast(self._run, self._estimate.forecast())
