"""Leaderboards: layouts by questions, one board for each machine that a suite was measured on."""

from __future__ import annotations

from dataclasses import dataclass

from .. import formats
from ..finding import Score
from ..scoreboard import Scoreboard, scoreboard
from .run import SiteRun


@dataclass(frozen=True)
class Board:
    """What one machine says of a suite: the scores of `run`, and the `earlier` runs, newest first."""

    run: SiteRun
    earlier: list[SiteRun]
    scores: Scoreboard

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
    earlier = [run for run in newest_first if run is not stands]
    return Board(stands, earlier, scoreboard(stands.data, stands.findings))


def sort_value(score: Score | None) -> str:
    """What a cell is sorted by; "" for one without a number, which comes last either way."""
    return "" if score is None or score.value is None or formats.missing(score.value) else repr(float(score.value))
