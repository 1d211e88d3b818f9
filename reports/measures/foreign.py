"""What other tools measured: tables and points as their files have them. No question is answered with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from .. import formats
from ..charts import WIDTH, Figure, Style, finish, tooltips
from ..lines import KEYS, Lines, Row, measured, tidy
from ..section import Section
from ..statistics import rows_of
from ..table import Table, numbered
from ..tables import RunData

COLUMNS = [*KEYS, "task", "mode", "length", "settings", "quantity", "unit", "value", "low", "high", "interval"]
COLUMNS += ["count", "better", "case"]
MOST = 60  # rows of a chart
_ROW, _NAME = 18, 44  # pixels of a row, characters of what it is called
_TELLING = {"task": "Task", "mode": "Mode", "length": "Tokens", "settings": "Settings"}


class Foreign(Section):
    measure = "foreign"
    title = "Measured by another tool"
    order = 75
    alike = frozenset({"task", "mode", "length", "quantity", "unit", "better", "settings"})

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        return {"foreign": tidy(_rows(lines), COLUMNS)}

    def figures(self, run: RunData) -> Iterator[Figure]:
        for name, quantity, rows in _quantities(run):
            yield _points(run, name, quantity, rows)

    def tables(self, run: RunData) -> Iterator[Table]:
        for name, quantity, rows in _quantities(run):
            telling = [column for column in _TELLING if rows[column].notna().any()]
            columns = ["Layout", *(_TELLING[column] for column in telling), "Value", "Count"]
            cells = [
                [str(row.layout), *(_cell(getattr(row, column)) for column in telling), _shown(row), _cell(row.count)]
                for row in rows_of(rows)
            ]
            yield Table(name, quantity, columns, cells, _said(run, rows), text_columns=1 + len(telling))

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        for row in rows_of(run["foreign"]):
            told = ", ".join(str(x) for x in (row.task, row.settings) if isinstance(x, str))
            number = {
                name: getattr(row, name) for name in ("value", "low", "high", "interval", "unit", "mode", "length")
            }
            yield {"layout": row.layout, "variant": told, "quantity": row.quantity, "count": row.count, **number}


SECTION = Foreign()


def _rows(lines: Lines) -> Iterator[Row]:
    for line, metrics, known in measured(lines, "foreign"):
        settings = line.parameters.get("settings") or {}
        told = ", ".join(f"{name} = {value}" for name, value in settings.items())
        yield {**known, **metrics, "settings": told or None}


def _quantities(run: RunData) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The values of each quantity, with a name for its figure and table, and what it is called."""
    groups = run["foreign"].groupby(["quantity", "unit"], sort=False, dropna=False)
    for number, ((quantity, unit), rows) in enumerate(groups):
        yield numbered("foreign", number), f"{quantity} ({unit})" if unit else str(quantity), rows


def _said(run: RunData, rows: pd.DataFrame) -> str:
    """Whose numbers these are, what stands in brackets, and which end is the better one."""
    said = f"Measured by {run.foreign_tool or 'another tool'} and imported: part of no comparison and no claim here."
    intervals = [str(interval) for interval in dict.fromkeys(rows["interval"].dropna())]
    said += f" In brackets: {formats.listing(intervals)}." if intervals else ""
    better = dict.fromkeys(rows["better"].dropna())
    return f"{said} {'Less' if 'less' in better else 'More'} is better." if len(better) == 1 else said


def _points(run: RunData, name: str, quantity: str, rows: pd.DataFrame) -> Figure:
    """A row for each value, named by what tells it from the others, layout by layout."""
    shown = rows.head(MOST)
    labels = [_label(number, row, _telling(shown)) for number, row in enumerate(rows_of(shown), start=1)]
    frame = shown.assign(row=labels, shown=[_shown(row) for row in rows_of(shown)])
    frame = frame[["layout", "row", "value", "low", "high", "shown"]]
    style = Style(run.layouts, legend=None)
    wide = frame["value"].min() > 0 and frame["value"].max() > 20 * frame["value"].min()
    positive = wide and not (frame["low"] <= 0).any()
    scale = alt.Scale(type="log", nice=False, padding=14) if positive else alt.Scale(zero=False, padding=14)
    x = alt.X("value:Q", scale=scale, title=quantity, axis=alt.Axis(format="~g"))
    y = alt.Y("row:N", sort=labels, title=None, axis=alt.Axis(labelLimit=320, grid=True))
    base = alt.Chart(frame).encode(y=y, color=style.colour(), opacity=style.emphasis)
    whisker = base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", title=quantity), x2="high:Q")
    point = base.mark_point(filled=True, size=55).encode(x=x, tooltip=tooltips(("row", "what"), ("shown", "value")))
    size = {"width": WIDTH - 120, "height": _ROW * max(3, len(frame))}
    chart = alt.layer(whisker, point).properties(**size)
    left_out = f" The first {MOST} of {len(rows)} values; the table has all." if len(rows) > MOST else ""
    caption = _said(run, rows) + left_out
    text = f"A point for each value: {'; '.join(f'{r.row} {r.shown}' for r in rows_of(frame))}."
    subtitle = f"as the file says it{', logarithmic' if positive else ''}"
    return Figure(name, quantity, caption, text, finish(chart, quantity, subtitle))


def _telling(rows: pd.DataFrame) -> list[str]:
    """As few columns as tell the rows apart, all that differ if none do."""
    found: list[str] = []
    for column in ("layout", *_TELLING):
        if rows[column].nunique(dropna=False) > 1:
            found.append(column)
            if not rows.duplicated(found).any():
                break
    return found or ["layout"]


def _label(number: int, row: Any, telling: list[str]) -> str:
    """The number keeps rows apart that the file calls the same."""
    cells = [" ".join(_cell(getattr(row, column)).split()) for column in telling]
    return f"{number}. {formats.shorten(', '.join(c for c in cells if c != formats.NOTHING), _NAME)}"


def _shown(row: Any) -> str:
    value = f"{row.value:.4g}"
    return (
        value if formats.missing(row.low) or formats.missing(row.high) else f"{value} [{row.low:.4g}, {row.high:.4g}]"
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return formats.NOTHING if formats.missing(value) else formats.whole(value)
