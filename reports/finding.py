"""What a verdict is made of, and how failures are named in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from . import formats
from .formats import mode_name
from .machines import comparable
from .statistics import rows_of
from .table import numbered
from .tables import RunData


@dataclass(frozen=True)
class Score:
    """What a layout scored on a question: a cell of the scoreboard.

    text: as people read it, `not taught` or why it failed where there is no number. value: what it is sorted by; low,
    high: its interval, or the quartiles; all None without a number. best: the best, or not told apart from it.
    """

    layout: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Finding:
    """One question of the comparison, and its answer.

    winner: None if the measurement does not tell the best from the others. open: said in the place of a winner.
    evidence: the id of the element of the page that shows it. column: the heading of its column of the scoreboard, ""
    for none. better: which end of `scores` is the good one. scores: one for each layout that was asked. measure: whose
    section it comes from; `verdict.findings` fills it in.
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
    measure: str = ""


def seeds_statement(seeds: pd.Series) -> str:
    """How many seeds there are, and that fewer than three say nothing of the spread between seeds."""
    numbers = sorted(set(seeds))
    listed = formats.numbers(numbers)
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
    causes: dict[str, list[str]] = {}
    for row in rows_of(failures_of(run, measure, mode)):
        what = row.what.removeprefix(mode).lstrip(", ")
        causes.setdefault(row.layout, []).append(f"{what}: {row.status}" if what else row.status)
    named = [f"{layout} ({', '.join(dict.fromkeys(c)).replace('_', ' ')})" for layout, c in causes.items()]
    return f" Failed: {formats.listing(named)}." if named else ""


def failures_of(run: RunData, measure: str, mode: str = "") -> pd.DataFrame:
    """The failures of a measure, in one of its modes if one is given."""
    failures = run["failures"]
    failures = failures[failures["measure"] == measure]
    return failures[failures["what"].str.startswith(mode)] if mode else failures


def without_number(run: RunData, measure: str, mode: str, length: int, known: Iterable[str]) -> Iterator[Score]:
    """What the scoreboard says of layouts that failed at a length, of those that have no number there."""
    what = f"{mode}, {length:,} tokens"
    named = dict.fromkeys(known)
    for row in rows_of(failures_of(run, measure, mode)):
        if row.what == what and row.layout not in named:
            named[row.layout] = None
            yield Score(row.layout, row.status.replace("_", " "))


def by_mode(run: RunData, frame: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Groups by variant and mode that can be compared; training step first, then decoding, then
    the others."""
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(["variant", "mode"], sort=False, dropna=False))
    first = ["training step", "decoding"]
    groups.sort(key=lambda item: next((i for i, name in enumerate(first) if name == mode_name(item[0][1])), len(first)))
    return comparable(groups, run.places)


def figure_of(stem: str, frame: pd.DataFrame, variant: str) -> str:
    """The id of the figure of a variant, where there is one figure for each variant of `frame`."""
    return f"figure-{numbered(stem, list(frame['variant'].unique()).index(variant))}"


def of(variant: object) -> str:
    return f" ({variant})" if variant else ""
