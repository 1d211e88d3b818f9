"""The section of a measure that has none of its own: every number of its metrics, pooled over seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from . import formats
from .change import Change, Refused, backends_note, matched, mean, of_seeds
from .inference import Estimate, seed_mean
from .lines import KEYS, Lines, Row, measured, size, tidy
from .machines import with_machine
from .section import Section
from .statistics import rows_of
from .table import Table, each, in_brackets
from .tables import RunData

COLUMNS = [*KEYS, "mode", "length", "quantity", "value", "backends", "case"]


class PlainSection(Section):
    """Tables of layouts by quantities. Nothing is known of which end is the better one, so it answers no question."""

    holds_for = "one machine"  # for all that is known

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self.title = measure.replace("_", " ").capitalize()
        self.alike = frozenset({"rounds", "mode", "length"})

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        return {self.measure: tidy(_rows(lines, self.measure), COLUMNS)}

    def tables(self, run: RunData) -> Iterator[Table]:
        for suffix, (variant, mode, length), rows in each(run[self.measure], "variant", "mode", "length"):
            quantities = list(dict.fromkeys(rows["quantity"]))
            pooled = {
                (layout, quantity): _shown(seed_mean(own["value"].tolist()))
                for (layout, quantity), own in rows.groupby(["layout", "quantity"], sort=False)
            }
            layouts = dict.fromkeys(rows["layout"])
            cells = [[name, *(pooled.get((name, q), formats.NOTHING) for q in quantities)] for name in layouts]
            sizes = [str(mode)] if isinstance(mode, str) else []
            where = ", ".join(sizes + ([] if formats.missing(length) else [f"{length:,.0f} tokens"]))
            title = f"{self.title}{in_brackets(where)}{in_brackets(variant)}"
            note = "Mean over seeds, with its 95 % interval where there are three and they differ."
            table = Table(f"{self.measure}{suffix}", title, ["Layout", *quantities], cells, note)
            yield with_machine(table, variant, run.places)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        keys = ["layout", "variant", "mode", "length", "quantity"]
        for values, own in run[self.measure].groupby(keys, sort=False, dropna=False):
            found = seed_mean(own["value"].tolist())
            interval = {"low": found.low, "high": found.high, "interval": "95 %, new seeds"}
            backends = " | ".join(dict.fromkeys(own["backends"]))
            how = {"count": len(own), "seeds": own["seed"].nunique(), "backends": backends}
            yield {**dict(zip(keys, values)), "value": found.value, **interval, **how}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        keys = ["layout", "variant", "mode", "length", "quantity"]
        for key, own, other in matched(before[self.measure], after[self.measure], keys):
            values = [{int(r.seed): r.value for r in rows_of(rows)} for rows in (own, other)]
            if values[0].keys() & values[1].keys():
                yield _changed(self.measure, key, values, backends_note(own, other))


def _changed(measure: str, key: tuple, values: list[dict[int, float]], note: str) -> Change:
    layout, variant, mode, length, quantity = key
    sizes = [str(mode)] if mode is not None else []
    where = ", ".join([*sizes, *([] if length is None else [f"{length:,.0f} tokens"])])
    return Change(
        measure=measure,
        layout=layout,
        what=f"{quantity}{in_brackets(where)}{in_brackets(variant)}",
        unit="of it",
        before=f"{mean(*values):.4g}",
        after=f"{mean(*reversed(values)):.4g}",
        better=None,
        note=note,
        **of_seeds(*values),
    )


def _rows(lines: Lines, measure: str) -> Iterator[Row]:
    for line, metrics, known in measured(lines, measure):
        where = {**known, "mode": size(line, "mode"), "length": size(line, "length")}
        for quantity, value in _numbers(metrics):
            yield {**where, "quantity": quantity, "value": value}


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested metrics, named by their path; lists are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _shown(found: Estimate) -> str:
    if formats.missing(found.low):
        return formats.si(found.value)
    return f"{formats.si(found.value)} [{formats.si(found.low)}, {formats.si(found.high)}]"
