"""What a verdict is made of, and how failures are named in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from . import formats
from .statistics import rows_of
from .tables import RunData


@dataclass(frozen=True)
class Score:
    """What one layout scored on one question. text: as it is shown; value: sorts, None where there is no number.

    best: the best, or not told apart from it.
    """

    layout: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Finding:
    """One question of the comparison. winner: None if the measurement does not tell the best from the others.

    open: said in the place of a winner. evidence: id of the element of the page that shows it. column: heading of its
    column of the scoreboard, "" for none; better: which of the scores are the good ones.
    """

    topic: str
    winner: str | None
    value: str
    sentence: str
    open: str = "cannot tell"
    evidence: str = ""
    column: str = ""
    better: Literal["more", "less"] = "more"
    scores: tuple[Score, ...] = ()


def seeds_statement(seeds: pd.Series) -> str:
    """How many seeds there are, and that fewer than three say nothing of the spread between seeds."""
    numbers = sorted(set(seeds))
    listed = formats.listing([str(n) for n in numbers])
    if len(numbers) >= 3:
        return f"{len(numbers)} seeds ({listed})."
    count = "One seed" if len(numbers) == 1 else f"{len(numbers)} seeds"
    return f"{count} ({listed}): intervals hold for these trained models, not for the layout."


def common_length(frame: pd.DataFrame) -> int:
    """The greatest length at which the most layouts of `frame` have a result. `frame` has rows."""
    counts = frame.groupby("length")["layout"].nunique()
    return int(counts[counts == counts.max()].index.max() if counts.max() > 1 else frame["length"].max())


def failed(run: RunData, measure: str, mode: str = "") -> str:
    """Names what failed of a measure, so that nobody wins unopposed in silence."""
    failures = run.failures[run.failures["measure"] == measure]
    if mode:
        failures = failures[failures["what"].str.startswith(mode)]
    causes: dict[str, list[str]] = {}
    for row in rows_of(failures):
        what = row.what.removeprefix(mode).lstrip(", ")
        causes.setdefault(row.layout, []).append(f"{what}: {row.status}" if what else row.status)
    named = [f"{layout} ({', '.join(dict.fromkeys(c)).replace('_', ' ')})" for layout, c in causes.items()]
    return f" Failed: {formats.listing(named)}." if named else ""


def of(variant: object) -> str:
    return f" ({variant})" if variant else ""
