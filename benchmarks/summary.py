"""The tables that end a run on the terminal; `reports` makes the full ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from .measures import measures
from .measures.entry import Format
from .progress import status_text
from .runs import ResultLine


def summary_tables(results: Iterable[ResultLine]) -> dict[str, Table]:
    """One table a quantity, by title: layouts by sizes, of the `ok` results; several seeds are put together."""
    values: dict[str, dict[str, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    formats: dict[str, Format] = {}
    known = measures()
    for result in results:
        if result.status == "ok" and result.measure in known:
            for entry in known[result.measure].entries(result):
                values[entry.title][result.layout][entry.column].append(entry.value)
                formats[entry.title] = entry.format
    return {title: _table(rows, formats[title]) for title, rows in values.items()}


def failure_table(results: Iterable[ResultLine]) -> Table | None:
    """The results that are not `ok`, with the first line of what went wrong; None if all are."""
    failures = [r for r in results if r.status != "ok"]
    if not failures:
        return None
    table = Table("case", "layout", "measure", "seed", "status", "error")
    for r in failures:
        error = escape((r.error or "").split("\n", 1)[0])
        table.add_row(r.case, escape(r.layout), r.measure, str(r.seed), status_text(r.status), error)
    return table


def _table(rows: dict[str, dict[Any, list[float]]], formatter: Format) -> Table:
    columns = sorted({column for cells in rows.values() for column in cells})
    table = Table("layout")
    for column in columns:
        heading = "–".join(map(str, column)) if isinstance(column, tuple) else str(column)
        table.add_column(escape(heading), justify="right")
    for label, cells in rows.items():
        table.add_row(escape(label), *(escape(formatter(cells[c])) if c in cells else "" for c in columns))
    return table
