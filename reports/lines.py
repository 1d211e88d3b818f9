"""Result lines as the rows of tidy tables: what the sections of all measures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from sys import intern
from typing import Any

import pandas as pd

from .result import Result
from .variants import purpose

KEYS = ["layout", "variant", "seed"]  # the first columns of most tables
COMPILED = ("compile_seconds", "graph_breaks")  # where torch.compile was asked for
FAILED = [*KEYS, "mode", "length", "status", "case"]

Lines = list[tuple[Result, str]]  # each with its variant
Row = dict[str, Any]


def size(line: Result, name: str) -> Any:
    """The mode or the length of a case of one of them; None if it has several or none."""
    values = line.parameters.get(f"{name}s")
    if isinstance(values, list):
        return values[0] if len(values) == 1 else None
    return line.parameters.get(name)


def case_text(line: Result) -> str:
    """What of its measure a case was: mode and length where it has one, else nothing."""
    mode, length = size(line, "mode"), size(line, "length")
    return ", ".join([*([str(mode)] if mode else []), *([f"{length:,} tokens"] if isinstance(length, int) else [])])


def choice_text(choice: dict[str, Any] | None) -> str:
    """`learning_rate = 0.002, heads = 4`."""
    return ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in (choice or {}).items())


def layout_line(line: Result) -> str:
    return str(line.parameters.get("layout_line") or line.parameters.get("model", {}).get("layout", ""))


def identity(line: Result, variant: str) -> Row:
    return {
        "layout": line.layout,
        "variant": variant,
        "seed": line.seed,
        "measure": purpose(line),
        "case": line.case,
        "backends": intern("; ".join(f"{op}: {', '.join(names)}" for op, names in sorted(line.backends.items()))),
        "status": line.status,
    }


def measured(lines: Lines, measure: str) -> Iterator[tuple[Result, dict[str, Any], Row]]:
    """The cases of a measure that ended well, each with its metrics and what says whose they are."""
    for line, variant in lines:
        if line.measure == measure and line.status == "ok" and line.metrics is not None:
            yield line, line.metrics, identity(line, variant)


def failed_rows(lines: Lines, measure: str) -> Iterator[Row]:
    """The cases of a measure that failed at one length: where, with the status that says why."""
    for line, variant in lines:
        if line.measure == measure and line.status != "ok" and size(line, "length"):
            yield {**identity(line, variant), "mode": size(line, "mode"), "length": size(line, "length")}


def tidy(rows: Iterable[Row], columns: list[str]) -> pd.DataFrame:
    """The rows as a table with exactly these columns, nan where a row has nothing of that name."""
    found: dict[str, list[Any]] = {name: [] for name in columns}
    places = [(name, values.append) for name, values in found.items()]
    for row in rows:
        get = row.get
        for name, append in places:
            append(get(name, math.nan))
    return by_columns(found)


def by_columns(found: dict[str, list[Any]]) -> pd.DataFrame:
    """Columns as a table; of columns without a row nothing is known, not even that they are numbers."""
    return pd.DataFrame(found) if any(found.values()) else pd.DataFrame([], columns=list(found))
