"""How a run goes, read from its folder: what is done, at work and to do, what failed, whether anybody works on it."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from .progress import first_line, shown, status_text, work_table
from .runs import Index, LineHead, ResultLine, Run, RunError
from .status import RunStatus, is_at_work, read_status

LOOK_SECONDS = 1.0  # between two looks; twice that beside a case that is timed
UNFINISHED = 3  # the exit code of a run that nobody works on, and that can go on
_KINDS = ("done", "failed", "to_do")


class Overview:
    """What there is to say of a run at one moment.

    cells: how many cases of a layout and a measure are `done`, `failed` and `to_do`; totals: of all. last_failure: the
    latest result that is not ok. at_work: whether a runner is. status: what the last runner wrote.
    """

    def __init__(self, run: Run, index: dict[str, LineHead], status: RunStatus | None, at_work: bool) -> None:
        self.run, self.status, self.at_work = run, status, at_work
        cases, self.final = _planned(run)
        self.has_plan = cases is not None
        if cases is None:
            cases = [(head.case, head.layout, head.measure) for head in index.values()]
        self.cells: dict[tuple[str, str], Counter[str]] = {}
        for case, layout, measure in cases:
            head = index.get(case)
            kind = "to_do" if head is None else "done" if head.status == "ok" else "failed"
            self.cells.setdefault((layout, measure), Counter())[kind] += 1
        self.totals = sum(self.cells.values(), Counter[str]())
        failed = [head for head in reversed(index.values()) if head.status != "ok"]
        self.last_failure = next(run.lines(failed[:1]), None)

    @property
    def state(self) -> str:
        """`at work`, `finished`, `stopped` (cases are missing), or `unknown`: a run that kept no plan."""
        if self.at_work:
            return "at work"
        if not self.has_plan:
            return "unknown"
        return "finished" if self.final and not self.totals["to_do"] else "stopped"

    @property
    def exit_code(self) -> int:
        return 1 if self.totals["failed"] else UNFINISHED if self.state == "stopped" else 0

    def to_json(self) -> str:
        """One line. `runner` is what the last runner wrote, see `RunStatus`: stale unless `state` is `at work`."""
        fields = {"case", "layout", "measure", "seed", "status", "error"}
        found: dict[str, Any] = {
            "run": str(self.run.folder),
            "state": self.state,
            **{kind: self.totals[kind] for kind in _KINDS},
            "more_may_follow": not self.final,
            "cases": [
                {"layout": layout, "measure": measure, **{kind: cell[kind] for kind in _KINDS}}
                for (layout, measure), cell in self.cells.items()
            ],
            "last_failure": None if self.last_failure is None else self.last_failure.model_dump(include=fields),
            "runner": None if self.status is None else self.status.model_dump(mode="json"),
        }
        return json.dumps(found)

    def render(self, width: int) -> RenderableType:
        """All of it for a terminal."""
        parts: list[RenderableType] = [self._table(width)]
        if self.at_work and self.status is not None:
            parts += ["", work_table(self.status), ""]
        if self.last_failure is not None:
            parts.append(_failure(self.last_failure))
        return Group(*parts, self._runner())

    def _table(self, width: int) -> Table:
        """Layouts by measures; a row for each pair of them where there are too many to stand side by side."""
        measures = list(dict.fromkeys(measure for _, measure in self.cells))
        layouts = list(dict.fromkeys(layout for layout, _ in self.cells))
        if 24 + 20 * len(measures) > width:
            table = Table("layout", "measure", "cases")
            for (layout, measure), cell in self.cells.items():
                table.add_row(shown(layout), shown(measure), _cell(cell))
            return table
        table = Table("layout", *map(shown, measures))
        for layout in layouts:
            cells = (self.cells.get((layout, measure), Counter[str]()) for measure in measures)
            table.add_row(shown(layout), *map(_cell, cells))
        return table

    def _runner(self) -> str:
        """Who works on it, or how to go on; as rich markup."""
        status, failed = self.status, self.totals["failed"]
        if self.at_work:
            if status is None:
                return "[green]at work[/]"
            return f"[green]at work[/]: process {status.pid} on {shown(status.host)}, at {shown(status.updated)}"
        if self.state == "unknown":
            return "not running; it kept no plan, so what is missing cannot be told"
        if self.state == "finished":
            return f"finished, {failed} failed" if failed else "[green]finished[/]"
        killed = f", killed after {shown(status.updated)}" if status is not None and not status.ended else ""
        return f"[yellow]not running{killed}[/]; go on with: {shown(_again(self.run, status))}"


class Onlooker:
    """Looks at a run from outside, without holding its runner up: results that did not change are not read again."""

    def __init__(self, run: Run) -> None:
        self._run, self._index = run, Index(run)

    def __call__(self) -> Overview:
        """Raises `RunError` if there is no run, or it cannot be read."""
        if not self._run.exists:
            raise RunError(f"{self._run.folder} holds no run; make one with `mixerzoo run SUITE --out FOLDER`")
        at_work = is_at_work(self._run)  # first: what a runner wrote before it ended is read after it
        status = read_status(self._run)
        return Overview(self._run, self._index.update(), status, at_work)


def follow_run(look: Onlooker, console: Console, as_json: bool) -> Overview:
    """Show a run until nobody works on it; returns what there was in the end.

    On a terminal the picture is drawn anew in its place; elsewhere, and as JSON, each change is a line.
    """
    if console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False, transient=True) as display:
            while (found := look()).at_work:
                display.update(found.render(console.width), refresh=True)
                time.sleep(_pause(found))
        return found
    said = ""
    while (found := look()).at_work:
        if (line := _line(found, as_json)) != said:
            said = line
            print(line, flush=True)
        time.sleep(_pause(found))
    return found


def _line(found: Overview, as_json: bool) -> str:
    if as_json:
        return found.to_json()
    return ", ".join(f"{found.totals[kind]} {kind.replace('_', ' ')}" for kind in _KINDS)


def _pause(found: Overview) -> float:
    exclusive = found.status is not None and any(case.exclusive for case in found.status.at_work)
    return (2 if exclusive else 1) * LOOK_SECONDS


def _planned(run: Run) -> tuple[list[tuple[str, str, str]] | None, bool]:
    """Case, layout and measure of all cases that are known (None without a plan), and whether no result can add any."""
    plan = run.plan()
    if plan is None:
        return None, True
    return [(case["case"], case["layout"], case["measure"]) for case in plan["cases"]], plan["final"]


def _cell(cell: Counter[str]) -> str:
    """`3 done, 1 failed, 2 to do`, as rich markup."""
    done = "green" if cell["done"] == cell.total() else "default"
    styles = {"done": done, "failed": "red", "to_do": "yellow"}
    parts = (f"[{style}]{cell[kind]} {kind.replace('_', ' ')}[/]" for kind, style in styles.items() if cell[kind])
    return ", ".join(parts)


def _failure(result: ResultLine) -> str:
    what = f"{shown(result.layout)} {shown(result.measure)} seed {result.seed}, case {shown(result.case)}"
    return f"failed last: {status_text(shown(result.status))} {what}: {shown(first_line(result.error or ''))}"


def _again(run: Run, status: RunStatus | None) -> str:
    """The command that goes on with `run`, quoted for a shell."""
    if status is None or status.again[:2] != ["mixerzoo", "run"]:
        return shlex.join(["mixerzoo", "run", "SUITE", "--out", str(run.folder)])
    elsewhere = status.directory and Path(status.directory) != Path.cwd()
    return (f"cd {shlex.quote(status.directory)} && " if elsewhere else "") + shlex.join(status.again)
