"""The history of the micro benchmarks: charts across commits, and what the newest says against the one before.

Times of shared machines drift, so each is also shown as a multiple of the reference: causal attention of one fixed
size, timed in the same process just before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from ..benchmarks.micro_history import Machine, MicroRecord, read_records
from . import formats
from .charts import PANEL, Figure, Style, finish, panels, tooltips
from .statistics import rows_of
from .table import Table, in_brackets, numbered

COLUMNS = ["machine", "commit", "point", "dirty", "when", "time", "torch", "op", "variant", "backend", "direction"]
COLUMNS += ["length", "name", "layout", "rounds", "load", "median", "q1", "q3", "ratio", "ratio_low", "ratio_high"]
MEDIAN, RATIO = "Milliseconds", "Times the reference"
SLOWER, FASTER, OPEN, FIRST = "slower", "faster", "cannot tell", "the first"
_ORDER = [SLOWER, FASTER, OPEN, FIRST]


def read_history(path: str | Path) -> pd.DataFrame:
    """The records of `make micro`, one row each, oldest source first. Raises `HistoryError` for a line that is none.

    machine: what it is, as text; point: the commit, cut short, `+` where the source had changes; when: of the commit,
    or of the run where there was none; layout: the line of the chart: case, backend and direction; median, q1, q3:
    seconds; ratio, ratio_low, ratio_high: the same as multiples of the reference, the range from quartile to
    opposite quartile.
    """
    frame = pd.DataFrame([_row(record) for record in read_records(Path(path))], columns=COLUMNS)
    frame["when"] = pd.to_datetime(frame["when"], utc=True, format="ISO8601")
    return frame.sort_values(["when", "dirty", "time"], kind="stable", ignore_index=True)


def micro_figures(history: pd.DataFrame) -> list[Figure]:
    """A chart for every op on every machine, the machine that was measured last first."""
    return [
        _figure(number, machine, str(op), rows)
        for number, (machine, own) in enumerate(_by_machine(history))
        for op, rows in own.groupby("op", sort=True)
    ]


def micro_tables(history: pd.DataFrame) -> list[Table]:
    """For every machine the newest of each benchmark against the one before, what changed first."""
    columns = [
        "Op, case",
        "Backend",
        "Direction",
        "Tokens",
        "Commit",
        "Median [quartiles]",
        RATIO,
        "Change [range]",
        "",
    ]
    note = "Change: of the multiple of the reference, against the commit measured before on this machine; its range is "
    note += "from quartile to opposite quartile of both. Where that contains 1 the two cannot be told apart; a load of "
    note += "the machine that came or went in between can still pass for a change."
    return [
        Table(
            name=numbered("micro", number),
            title=f"Newest micro benchmarks, {machine}",
            columns=columns,
            rows=[_cells(row) for row in rows_of(_changes(own))],
            note=note,
            text_columns=3,
        )
        for number, (machine, own) in enumerate(_by_machine(history))
    ]


def _row(record: MicroRecord) -> dict[str, Any]:
    reference = record.reference
    return {
        **record.model_dump(include=set(COLUMNS) - {"machine"}),
        "machine": machine_name(record.machine),
        "point": (record.commit or "no commit")[:9] + "+" * bool(record.dirty),
        "dirty": bool(record.dirty),
        "when": record.committed or record.time,
        "layout": ", ".join(filter(None, (record.variant, record.backend, record.direction))),
        "ratio": record.median / reference.median,
        "ratio_low": record.q1 / reference.q3,
        "ratio_high": record.q3 / reference.q1,
    }


def machine_name(machine: Machine) -> str:
    """`AMD EPYC, 2 cores, 1 thread`."""
    counts = [(machine.cores, "core"), (machine.threads, "thread")]
    counted = [f"{count} {noun}{'s' if count != 1 else ''}" for count, noun in counts]
    return ", ".join([*filter(None, (machine.gpu, machine.cpu)), *counted])


def _by_machine(history: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    last = history.groupby("machine")["time"].max().sort_values(ascending=False, kind="stable")
    for machine in last.index:
        yield str(machine), history[history["machine"] == machine]


def _figure(number: int, machine: str, op: str, rows: pd.DataFrame) -> Figure:
    frame, points = _long(rows), list(dict.fromkeys(rows["point"]))
    style = Style(list(dict.fromkeys(rows["layout"])))
    axis = alt.Axis(labelAngle=-40 if len(points) > 2 else 0, labelLimit=90)
    x = alt.X("point:O", sort=points, title="Commit, oldest first", axis=axis)
    y = alt.Y("value:Q", scale=alt.Scale(type="log", nice=False, padding=14), title=None, axis=alt.Axis(format="~g"))
    tips = [("point", "commit"), ("shown", "median [quartiles]"), ("multiple", "times the reference")]
    tips += [("rounds", "rounds"), ("load", "load of the machine"), ("torch", "torch"), ("time", "measured")]
    names = [_panel(length, unit) for length in sorted(set(rows["length"])) for unit in (MEDIAN, RATIO)]
    curves = style.curves(frame, x, y, tooltips(*tips))
    chart = panels(curves, frame, names, columns=2, width=PANEL, height=200, free=True)
    caption = (
        "Median and quartiles of a call over commits, in milliseconds and as a multiple of causal attention of one "
    )
    caption += f"fixed size in the same process; logarithmic axes. Machine: {machine}."
    newest = [row for row in rows_of(rows) if row.point == points[-1]]
    said = [f"{r.layout}, {r.length:,} tokens: {formats.seconds(r.median)}, {r.ratio:.3g} times" for r in newest]
    title, text = f"Micro benchmarks: {op}", f"At {points[-1]}: {'; '.join(said)}."
    drawn = finish(chart, title, f"{machine}; lower is better")
    return Figure(numbered(f"micro-{op}", number), title, caption, text, drawn)


def _long(rows: pd.DataFrame) -> pd.DataFrame:
    """Two rows for each: its time and its multiple of the reference, `value` between `low` and `high` in a `panel`."""
    shown = [f"{formats.seconds(r.median)} [{formats.seconds(r.q1)}, {formats.seconds(r.q3)}]" for r in rows_of(rows)]
    kept = rows[["layout", "point", "rounds", "torch", "time", "median", "q1", "q3"]]
    common = kept.assign(shown=shown, multiple=[f"{r:.3g}" for r in rows["ratio"]])
    common["load"] = ["not known" if formats.missing(load) else f"{load:.2f}" for load in rows["load"]]
    times = {"value": 1e3 * rows["median"], "low": 1e3 * rows["q1"], "high": 1e3 * rows["q3"]}
    ratios = {"value": rows["ratio"], "low": rows["ratio_low"], "high": rows["ratio_high"]}
    both = [
        common.assign(panel=[_panel(length, unit) for length in rows["length"]], **values)
        for unit, values in ((MEDIAN, times), (RATIO, ratios))
    ]
    return pd.concat(both, ignore_index=True)


def _panel(length: int, unit: str) -> str:
    return f"{length:,} tokens, {unit.lower()}"


def _changes(own: pd.DataFrame) -> pd.DataFrame:
    """The newest of each benchmark, with `change`, `change_low`, `change_high` and `verdict`."""
    newest = own.groupby("name", sort=False).tail(1)
    before = own.drop(newest.index).groupby("name", sort=False).tail(1)
    kept = before[["name", "ratio", "ratio_low", "ratio_high"]]
    both = newest.merge(kept, on="name", how="left", suffixes=("", "_before"))
    both["change"] = both["ratio"] / both["ratio_before"]
    both["change_low"] = both["ratio_low"] / both["ratio_high_before"]
    both["change_high"] = both["ratio_high"] / both["ratio_low_before"]
    both["verdict"] = [_verdict(row) for row in rows_of(both)]
    both["rank"] = [_ORDER.index(verdict) for verdict in both["verdict"]]
    return both.sort_values(["rank", "op", "variant", "length", "direction", "backend"], kind="stable")


def _verdict(row: Any) -> str:
    if formats.missing(row.change):
        return FIRST
    if row.change_low > 1:
        return SLOWER
    return FASTER if row.change_high < 1 else OPEN


def _cells(row: Any) -> list[str]:
    first = row.verdict == FIRST
    change = formats.NOTHING if first else f"{row.change:.3g} [{row.change_low:.3g}, {row.change_high:.3g}]"
    return [
        f"{row.op}{in_brackets(row.variant)}",
        str(row.backend),
        formats.mode_name(row.direction),
        formats.whole(row.length),
        str(row.point),
        f"{formats.seconds(row.median)} [{formats.seconds(row.q1)}, {formats.seconds(row.q3)}]",
        f"{row.ratio:.3g}",
        change,
        row.verdict,
    ]
