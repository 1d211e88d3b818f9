"""Recall: what taught models find again, by length, load, passes and kind of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pandas as pd

from .. import formats
from ..change import Change, Refused
from ..charts import Figure
from ..finding import Finding
from ..heatmaps import heat_figures
from ..inference import Tally
from ..lines import KEYS, Lines, Row, by_columns, identity, measured, size, tidy
from ..recall import asked
from ..recall_changes import recall_changes
from ..recall_figures import recall_figures
from ..recall_findings import recall_findings
from ..recall_tables import recall_tables
from ..result import Rows
from ..section import Section
from ..sparse_memories import SPARSE, sparse_figures, sparse_rows, sparse_tables
from ..statistics import rows_of
from ..table import Table
from ..tables import RunData
from ..trade_off import trade_off
from ..trainings import taught_models

CELL = ["length", "load", "passes", "memory"]
BY_DEPTH = [*KEYS, *CELL, "depth", "recent", "correct", "total", "chance", "backends", "case"]
ANSWERS = [*KEYS, *CELL, "hits", "chance", "backends", "case"]
FAILED = [*KEYS, "length", "status", "case"]


class Recall(Section):
    measure = "recall"
    title = "Recall"
    order = 20

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        taught = {(layout, variant, seed) for of, layout, variant, seed in taught_models(lines) if of == "recall"}
        own = [(line, variant) for line, variant in lines if (line.layout, variant, line.seed) in taught]
        return {
            "recall": _by_depth(own),
            "answers": tidy(_answer_rows(own), ANSWERS),
            "failed_lengths": tidy(_failed_rows(own), FAILED),
            "sparse_memories": tidy(sparse_rows(own), SPARSE),
        }

    def findings(self, run: RunData) -> Iterator[Finding]:
        yield from recall_findings(run)

    def figures(self, run: RunData) -> Iterator[Figure]:
        yield from recall_figures(run)
        yield from heat_figures(run)
        yield from sparse_figures(run)
        yield from trade_off(run)

    def tables(self, run: RunData) -> Iterator[Table]:
        yield from recall_tables(run)
        yield from sparse_tables(run)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        for recall in asked(run):
            for r in rows_of(recall.cells):
                where = {"layout": r.layout, "variant": recall.variant, **{key: getattr(r, key) for key in CELL}}
                how = {"count": r.total, "seeds": r.seeds, "backends": r.backends}
                share = {"value": r.accuracy, "low": r.low, "high": r.high, "interval": f"95 %, {r.kind}"}
                yield {**where, **how, **share, "unit": "share", "quantity": "accuracy"}
                if not formats.missing(r.state_bytes):
                    state = {"quantity": "state_bytes", "value": r.state_bytes, "unit": "B", "count": 1}
                    yield {**where, **how, **state}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        yield from recall_changes(before, after)


SECTION = Recall()


def _by_depth(lines: Lines) -> pd.DataFrame:
    """One row for each cell and depth of a model; made by columns, as there are many of a model."""
    found: dict[str, list[Any]] = {name: [] for name in BY_DEPTH}
    for _, metrics, known in measured(lines, "recall"):
        rows = metrics["rows"]
        columns = (
            rows.columns
            if isinstance(rows, Rows)
            else {k: [r.get(k, math.nan) for r in rows] for k in (rows or [{}])[0]}
        )
        for name, values in found.items():
            values.extend(columns[name] if name in columns else repeat(known.get(name, math.nan), len(rows)))
    return by_columns(found)


def _answer_rows(lines: Lines) -> Iterator[Row]:
    """One row for every length, load, number of passes and memory of a model; `hits` is its `Tally`."""
    for _, metrics, known in measured(lines, "recall"):
        chances = {tuple(row.get(k) for k in CELL): row.get("chance", math.nan) for row in metrics["rows"]}
        for answer in metrics["answers"]:
            hits = answer["hits"]
            hits = hits if isinstance(hits, Tally) else Tally.of(hits)
            yield {**known, **answer, "hits": hits, "chance": chances.get(tuple(answer.get(k) for k in CELL), math.nan)}


def _failed_rows(lines: Lines) -> Iterator[Row]:
    """Lengths at which a taught model gave no answers, with the status that says why."""
    for line, variant in lines:
        if line.measure == "recall" and line.status != "ok" and size(line, "length"):
            yield {**identity(line, variant), "length": size(line, "length")}
