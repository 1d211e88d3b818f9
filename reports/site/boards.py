"""Leaderboards: layouts by questions, one board for each machine that a suite was measured on."""

from __future__ import annotations

from dataclasses import dataclass

from .. import formats
from ..finding import Finding, Score
from .run import SiteRun


@dataclass(frozen=True)
class Board:
    """What one machine says of a suite: the scores of `run`, and the `earlier` runs, newest first.

    columns: the questions with a score for every layout. rows: layout -> its score in every column, None for none.
    """

    run: SiteRun
    earlier: list[SiteRun]
    columns: list[Finding]
    rows: dict[str, list[Score | None]]

    @property
    def id(self) -> str:
        return self.run.machine_id

    @property
    def machine(self) -> str:
        return self.run.machine


def boards(runs: list[SiteRun]) -> list[Board]:
    """The boards of one suite, by the machine's name. Runs of other tools have no place on them.

    The newest run that is complete stands for its machine; one that is not complete only where no other is there.
    """
    machines: dict[str, list[SiteRun]] = {}
    for run in sorted(runs, key=lambda run: run.order, reverse=True):
        if run.foreign is None:
            machines.setdefault(run.machine, []).append(run)
    return [_board(machines[machine]) for machine in sorted(machines)]


def _board(newest_first: list[SiteRun]) -> Board:
    stands = next((run for run in newest_first if not run.incomplete), newest_first[0])
    columns, rows = scoreboard(stands.findings, stands.data.layouts)
    return Board(stands, [run for run in newest_first if run is not stands], columns, rows)


def scoreboard(findings: list[Finding], layouts: list[str]) -> tuple[list[Finding], dict[str, list[Score | None]]]:
    """The findings that score the layouts, and of each layout that any of them scores its cells."""
    columns = [finding for finding in findings if finding.column and finding.scores]
    scores = [{score.layout: score for score in finding.scores} for finding in columns]
    rows = {layout: [own.get(layout) for own in scores] for layout in layouts}
    return columns, {layout: cells for layout, cells in rows.items() if any(cells)}


def sort_value(score: Score | None) -> str:
    """What a cell is sorted by; "" for one without a number, which comes last either way."""
    return "" if score is None or score.value is None or formats.missing(score.value) else repr(float(score.value))
