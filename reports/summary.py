"""The numbers of a run for machines: one table, one pooled number a row, with interval, unit and backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from .tables import RunData

SUMMARY = ["layout", "measure", "variant", "quantity", "mode", "length", "load", "passes", "memory", "value", "low"]
SUMMARY += ["high", "interval", "unit", "count", "seeds", "backends"]


def summary(run: RunData) -> pd.DataFrame:
    """Every pooled number of the run, one a row, with its interval, unit and the backends that ran.

    Where things were timed on several kinds of machines, a column `machine` says on which kind this number was.
    """
    rows = [{"measure": section.measure, **row} for section in run.sections for row in section.numbers(run)]
    table = pd.DataFrame(rows, columns=SUMMARY)
    kinds = {variant: place.kind for variant, place in run.places.items()}
    return table.assign(machine=table["variant"].map(kinds)) if kinds else table


def ran(frame: pd.DataFrame) -> Callable[[Any], str]:
    """The backends of the rows of `frame` that agree with a pooled row in its layout, variant, mode and length."""
    keys = [k for k in ("layout", "variant", "mode", "length") if k in frame]
    seen = frame.groupby(keys, sort=False, dropna=False)["backends"].agg(lambda texts: " | ".join(dict.fromkeys(texts)))
    return lambda row: seen.get(tuple(getattr(row, k) for k in keys), "")
