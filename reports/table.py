"""A table of the page, and the two ways in which most of them are laid out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from . import formats
from .statistics import rows_of


@dataclass(frozen=True)
class Table:
    """A table of a report, its cells as text; the first column names the row.

    beside: path of the whole as CSV, where `rows` are only the first. text_columns: how many columns from
    the left hold words; numbers, in the others, stand at the right of theirs.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    text_columns: int = 1
    beside: str = ""

    def first(self, count: int, beside: str) -> Table:
        """Its first `count` rows, with a note that says where all are; itself if it has no more."""
        if len(self.rows) <= count:
            return self
        note = f"{self.note} The first {count:,} of {len(self.rows):,} rows; all are in {beside}.".strip()
        return replace(self, rows=self.rows[:count], note=note, beside=beside)

    def csv(self) -> str:
        """As CSV, quoted where needed."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def wide(
    frame: pd.DataFrame,
    across: str,
    cell: Callable[[Any], str],
    heading: Callable[[Any], str] = lambda length: f"{length:,}",
    first: str = "Layout, tokens",
) -> tuple[list[str], list[list[str]]]:
    """Layouts down, the values of a column across."""
    values = sorted(frame[across].unique())
    cells = {(r.layout, getattr(r, across)): cell(r) for r in rows_of(frame)}
    layouts = list(dict.fromkeys(frame["layout"]))
    rows = [[name, *(cells.get((name, v), formats.NOTHING) for v in values)] for name in layouts]
    return [first, *(heading(v) for v in values)], rows


def each(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[str, list[Any], pd.DataFrame]]:
    """Groups of a frame, with a name for the table that tells them apart, and what to add to its title."""
    for number, (key, group) in enumerate(frame.groupby(list(columns), sort=False, dropna=False)):
        yield numbered("", number), list(key), group


def numbered(stem: str, number: int) -> str:
    """The name of a table or figure of several of one kind: nothing is added for the first, `-2` for the second."""
    return stem if number == 0 else f"{stem}-{number + 1}"


def in_brackets(variant: object) -> str:
    return f" ({variant})" if variant else ""


def tokens(length: int) -> str:
    return f"{length:,} tokens"


def compiled_note(rows: pd.DataFrame) -> str:
    """What torch.compile took, where it was asked for; none of the seconds that are shown."""
    known = rows[["compile_seconds", "graph_breaks"]].dropna()
    if known.empty:
        return ""
    seconds, breaks = known.max()
    took, found = formats.seconds(seconds), formats.whole(breaks)
    return f" Before, torch.compile took at most {took}; graph breaks: {found} at most."
