"""Memory: the peak of what is allocated above the resident model, and the bytes of the state that a sequence keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .. import formats
from ..change import NEAR, Change, Refused, backends_note, matched, of_bytes
from ..charts import Figure
from ..finding import Finding, Score, by_mode, common_length, failed, figure_of, of, without_number
from ..formats import mode_name
from ..lines import FAILED, KEYS, Lines, Row, failed_rows, measured, size, tidy
from ..machines import ELSEWHERE, elsewhere, not_compared, with_machine
from ..scaling_figures import memory_figures, memory_growth_tables, state_figure
from ..section import Section
from ..statistics import rows_of
from ..table import Table, each, in_brackets, wide
from ..tables import RunData

QUANTITIES = ["peak_bytes", "model_bytes", "optimizer_bytes", "state_bytes", "activation_bytes_per_token"]
COLUMNS = [*KEYS, "mode", "length", *QUANTITIES, "method", "backends", "case"]
STATES = ["layout", "length", "state_bytes"]


class Memory(Section):
    measure = "memory"
    title = "Memory and state"
    order = 40
    holds_for = "one device"

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        peaks = sorted(_peak_rows(lines), key=lambda row: row["length"])
        frames = {"memory": tidy(peaks, COLUMNS), "states": tidy(_state_rows(lines), STATES)}
        return {**frames, "memory_failures": tidy(failed_rows(lines, "memory"), FAILED)}

    def findings(self, run: RunData) -> Iterator[Finding]:
        for (variant, mode), rows in by_mode(run, run["memory"].dropna(subset=["peak_bytes"])):
            yield _least_peak(run, variant, mode, rows)
        if len(run["states"]):
            yield _least_state(run["states"])

    def figures(self, run: RunData) -> Iterator[Figure]:
        yield from memory_figures(run)
        yield from state_figure(run)

    def tables(self, run: RunData) -> Iterator[Table]:
        for suffix, (variant, mode), rows in each(run["memory"].dropna(subset=["peak_bytes"]), "variant", "mode"):
            columns, cells = wide(rows, "length", lambda r: formats.bytes_(r.peak_bytes))
            title = f"Peak memory above the resident model, {mode_name(mode)}{in_brackets(variant)}"
            methods = formats.listing(sorted({str(m) for m in rows["method"].dropna()}))
            table = Table(f"peak-memory{suffix}", title, columns, cells, f"How bytes were read: {methods}.")
            yield with_machine(table, variant, run.places)
        if len(run["states"]):
            columns, cells = wide(run["states"], "length", lambda r: formats.bytes_(r.state_bytes))
            yield Table("state", "State of one sequence", columns, cells, "After reading that many tokens.")
        yield from memory_growth_tables(run)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        for r in rows_of(run["memory"]):
            where = {"layout": r.layout, "variant": r.variant, "mode": r.mode, "length": r.length}
            for quantity in (
                "peak_bytes",
                "model_bytes",
                "optimizer_bytes",
                "state_bytes",
                "activation_bytes_per_token",
            ):
                unit = "B/token" if quantity.endswith("per_token") else "B"
                number = {"quantity": quantity, "value": getattr(r, quantity), "unit": unit}
                yield {**where, **number, "count": 1, "seeds": 1, "backends": r.backends}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        for key, own, other in matched(before["memory"], after["memory"], ["layout", "variant", "mode", "length"]):
            yield from _changed(key, own, other)
        for (layout, length), own, other in matched(before["states"], after["states"], ["layout", "length"]):
            values = [float(rows["state_bytes"].iloc[0]) for rows in (own, other)]
            where = {"measure": "state", "layout": layout}
            yield of_bytes(where, f"after {formats.whole(length)} tokens", "state_bytes", *values)


SECTION = Memory()


def _peak_rows(lines: Lines) -> Iterator[Row]:
    for line, metrics, known in measured(lines, "memory"):
        yield {**known, "mode": size(line, "mode"), "length": size(line, "length"), **metrics}


def _state_rows(lines: Lines) -> Iterator[Row]:
    """State bytes of one sequence at each length, from recall, or else from the memory measure."""
    found: dict[tuple[str, int], float] = {}
    for line, metrics, _ in measured(lines, "recall"):
        for length, held in metrics["state_bytes"].items():
            found.setdefault((line.layout, int(length)), held)
    for line, metrics, _ in measured(lines, "memory"):
        if metrics.get("state_bytes") is not None:
            batch = line.parameters["batch"]
            found.setdefault((line.layout, int(size(line, "length"))), metrics["state_bytes"] / batch)
    for (layout, length), held in sorted(found.items(), key=lambda item: item[0][1]):
        yield {"layout": layout, "length": length, "state_bytes": held}


def _least_peak(run: RunData, variant: str, mode: str, rows: pd.DataFrame) -> Finding:
    length = common_length(rows)
    values = rows[rows["length"] == length].groupby("layout", sort=False)["peak_bytes"].median()
    what = f"{mode_name(mode)} of {formats.whole(length)} tokens{of(variant)}"
    others = elsewhere(run["memory"][run["memory"]["mode"] == mode], variant, run.places, set(rows["layout"]))
    without = [Score(name, ELSEWHERE) for name in others]
    without += without_number(run, "memory", mode, length, [*values.index, *others])
    return _least(
        f"Least peak memory, {what}",
        values,
        NEAR,
        not_compared(others) + failed(run, "memory", mode),
        evidence=figure_of("memory", run["memory"], variant),
        column=f"Peak memory, {what}",
        without=tuple(without),
    )


def _least_state(states: pd.DataFrame) -> Finding:
    length = common_length(states)
    values = states[states["length"] == length].set_index("layout")["state_bytes"]
    after = f"after {formats.whole(length)} tokens"
    return _least(f"Smallest state {after}", values, 0.0, "", evidence="table-state", column=f"State {after}")


def _least(
    topic: str,
    values: pd.Series,
    near: float,
    failures: str,
    evidence: str,
    column: str,
    without: tuple[Score, ...] = (),
) -> Finding:
    values = values.sort_values(kind="stable")
    least, shown = values.iloc[0], values.map(formats.bytes_)
    best = [str(name) for name in values.index[values <= least * (1 + near)]]
    equal = f"within {near:.0%} of each other" if near else "equal"
    sentence = f"{formats.listing(best)} {'needs' if len(best) == 1 else 'need'} {shown.iloc[0]}"
    sentence += f" ({equal})" if len(best) > 1 else ""
    if len(best) < len(values):
        following = values.index[len(best)]
        sentence += f"; next is {following} with {shown[following]}"
        sentence += f" and last {values.index[-1]} with {shown.iloc[-1]}" if len(best) + 1 < len(values) else ""
    scores = [
        Score(str(name), text, float(value), best=str(name) in best and len(values) > 1)
        for (name, value), text in zip(values.items(), shown)
    ]
    return Finding(
        topic,
        formats.listing(best),
        shown.iloc[0],
        f"{sentence}.{failures}",
        evidence=evidence,
        column=column,
        better="less",
        scores=(*scores, *without),
    )


def _changed(key: tuple, own: pd.DataFrame, other: pd.DataFrame) -> Iterator[Change]:
    layout, variant, mode, length = key
    where = {"measure": "memory", "layout": layout, "note": backends_note(own, other)}
    what = f"{mode_name(mode)} of {formats.whole(length)} tokens{in_brackets(variant)}"
    for quantity in QUANTITIES:
        values = [float(rows[quantity].astype(float).median()) for rows in (own, other)]
        if not any(map(formats.missing, values)):
            yield of_bytes(where, what, quantity, *values)
