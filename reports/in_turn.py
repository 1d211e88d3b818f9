"""What measures say that run several things in turn, in one process, and hold their ratios to bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import altair as alt
import pandas as pd

from . import formats, ratios
from .change import Change, Refused
from .charts import PANEL, Figure, Style, at_the_end, finish, in_words, lengths_axis, panels, titled, tooltips
from .finding import Finding, Score, of
from .formats import mode_name
from .in_turn_changes import in_turn_changes
from .lines import COMPILED, KEYS, Lines, Row, measured, tidy
from .machines import machine_column, with_machine
from .op_cost import cost_figures
from .scaling import growth_table
from .scaling_figures import speed_growths
from .section import Section
from .statistics import rows_of
from .table import Table, compiled_note, in_brackets, numbered, tokens
from .tables import RunData

TIMES = [*KEYS, "measure", "op", "backend", "mode", "tokens", "batch", "seconds", "seconds_low", "seconds_high"]
TIMES += ["units", "rounds", "samples", "peak_bytes", "method", "floor_bytes", "floor_seconds", "copy_bandwidth"]
TIMES += ["ran", "first_call_seconds", *COMPILED, "case"]
RATIOS = [*KEYS, "measure", "kind", "mode", "tokens", "lengths", "batch", "backend", "over", "value", "low", "high"]
RATIOS += ["bar", "met", "case"]
MOST_CURVES = 14  # that can be told apart


class InTurn(Section):
    """Of a measure whose metrics are `rows`, one for each thing that ran in turn, and `ratios` of them.

    Its tidy tables are named after it: `<measure>` and `<measure>_ratios`.
    """

    order = 60
    alike = frozenset({"rounds", "bars", "new_tokens"})
    holds_for = "one machine"

    def __init__(self, measure: str, title: str, alike: Iterable[str] = ()) -> None:
        self.measure, self.title, self.alike = measure, title, InTurn.alike | set(alike)

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        times, found = tidy(_times(lines, self.measure), TIMES), tidy(_ratios(lines, self.measure), RATIOS)
        return {self.measure: times, f"{self.measure}_ratios": found}

    def findings(self, run: RunData) -> Iterator[Finding]:
        found = run[f"{self.measure}_ratios"]
        held = found[found["bar"].notna()]
        topics = [f"{ratios.topic(row)}{of(row.variant)}" for row in rows_of(held)]
        for topic, rows in held.groupby([topics, held["bar"]], sort=False):
            yield _held_to_bar(str(topic[0]), rows, f"table-{self.measure}-ratios")
        yield from _unmeasured_bars(run, self.measure)

    def figures(self, run: RunData) -> Iterator[Figure]:
        times = run[self.measure]
        yield from cost_figures(run, times, f"{self.measure}-cost")
        for number, (variant, rows) in enumerate(_of_several_lengths(times).groupby("variant", sort=False)):
            if len(rows[["layout", "backend"]].drop_duplicates()) <= MOST_CURVES:
                yield _by_length(str(variant), rows, numbered(f"{self.measure}-lengths", number))

    def tables(self, run: RunData) -> Iterator[Table]:
        if len(run[f"{self.measure}_ratios"]):
            yield _ratio_table(run, self.measure)
        if len(run[self.measure]):
            yield _time_table(run, self.measure)
        for number, (variant, rows) in enumerate(_of_several_lengths(run[self.measure]).groupby("variant", sort=False)):
            named = rows.assign(layout=_contenders(rows), length=rows["tokens"])
            what = "the time of a call, in decoding of a token,"
            growths = growth_table(numbered(f"{self.measure}-growth", number), what, speed_growths(named), variant)
            yield from (with_machine(table, str(variant), run.places) for table in growths)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        for r in rows_of(run[self.measure]):
            where = {"layout": r.layout, "variant": r.variant, "mode": r.mode, "length": r.tokens}
            how = {"seeds": 1, "backends": f"{r.op}: {r.backend}"}
            seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "interval": "quartiles"}
            yield {**where, **how, **seconds, "quantity": "seconds", "unit": "s", "count": r.rounds}
            for quantity in ("peak_bytes", "floor_bytes"):
                if not formats.missing(getattr(r, quantity)):
                    yield {**where, **how, "quantity": quantity, "value": getattr(r, quantity), "unit": "B", "count": 1}
        for r in rows_of(run[f"{self.measure}_ratios"]):
            where = {"layout": r.layout, "variant": r.variant, "mode": r.mode, "length": r.tokens}
            number = {"quantity": r.kind, "value": r.value, "low": r.low, "high": r.high, "interval": "quartiles"}
            which = " over ".join(name for name in (r.backend, r.over) if isinstance(name, str))
            yield {**where, **number, "unit": "ratio", "count": 1, "seeds": 1, "backends": which}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        yield from in_turn_changes(self.measure, before, after)


def _times(lines: Lines, measure: str) -> Iterator[Row]:
    for line, metrics, known in measured(lines, measure):
        shared = {"op": line.parameters.get("op", metrics.get("mixer", "model"))}
        shared["copy_bandwidth"] = (metrics.get("copy_bandwidth") or {}).get("median")
        shared |= {key: metrics.get(key) for key in COMPILED}  # of the whole case
        for row in metrics["rows"]:
            seconds = {"seconds": row["median"], "seconds_low": row["q1"], "seconds_high": row["q3"]}
            floor = {"floor_bytes": math.nan, "floor_seconds": math.nan}
            yield {**known, **floor, **row, **seconds, **shared, "ran": _ran(row)}


def _ran(row: Row) -> str:
    """Which backends a contender took, `fwpkm: triton`; nothing where it was not recorded."""
    return "; ".join(f"{op}: {', '.join(names)}" for op, names in (row.get("ran") or {}).items())


def _ratios(lines: Lines, measure: str) -> Iterator[Row]:
    for line, metrics, known in measured(lines, measure):
        shared = {"batch": line.parameters.get("batch", 1), "lengths": line.parameters.get("lengths")}
        for ratio in metrics["ratios"]:
            yield {**known, **shared, **ratio}


def _of_several_lengths(times: pd.DataFrame) -> pd.DataFrame:
    """What one case has timed at several lengths."""
    return times[times.groupby(["case", "backend", "mode"])["tokens"].transform("nunique") > 1]


def _contenders(rows: pd.DataFrame) -> list[str]:
    return [f"{r.layout}, {r.backend}" for r in rows_of(rows)]


def _held_to_bar(topic: str, rows: pd.DataFrame, evidence: str) -> Finding:
    """How many layouts meet a bar, the one that misses it by most first; of one layout alone, whether it does."""
    at_least = rows["kind"].iloc[0] in ratios.AT_LEAST
    ordered = list(rows_of(rows.sort_values("value", ascending=at_least, kind="stable")))
    met = [row for row in ordered if row.met]
    scores = tuple(
        Score(r.layout, ratios.number(r), r.value, r.low, r.high, best=bool(r.met) and len(ordered) > 1)
        for r in ordered
    )
    shown = {row.layout: f"{row.layout} ({ratios.number(row)})" for row in ordered}
    bar = ratios.bar(ordered[0])
    if len(ordered) == 1:
        winner, value = ratios.outcome(ordered[0]), ratios.number(ordered[0])
        sentence = f"{ordered[0].layout}: {value}; the bar is {bar}."
    else:
        winner, value = f"{len(met)} of {len(ordered)} met", bar
        missed = [shown[row.layout] for row in ordered if not row.met]
        sentence = f"The bar is {bar}. From {shown[ordered[-1].layout]} to {shown[ordered[0].layout]}."
        sentence += f" Not met by {formats.listing(missed)}." if missed else ""
    return Finding(
        topic=f"Bar, {topic}",
        winner=winner,
        value=value,
        sentence=sentence,
        evidence=evidence,
        column=f"{topic[0].upper()}{topic[1:]}; {bar}" if len(ordered) > 1 else "",
        better="more" if at_least else "less",
        scores=scores,
    )


def _unmeasured_bars(run: RunData, measure: str) -> Iterator[Finding]:
    for line in run.lines:
        bars = line.parameters.get("bars") if line.measure == measure and line.status != "ok" else None
        if bars:
            modes = formats.listing([mode_name(m) for m in line.parameters["modes"]])
            status = line.status.replace("_", " ")
            sentence = f"{line.layout}: {status}, so {len(bars)} of the suite's bars have no number."
            yield Finding(f"Bars, {modes}", "not measured", status, sentence, evidence="failures")


def _by_length(variant: str, rows: pd.DataFrame, name: str) -> Figure:
    """What a token costs at each length, where one case has timed several."""
    costs = {
        name: 1e6 * rows[column] / rows["units"]
        for name, column in (("cost", "seconds"), ("low", "seconds_low"), ("high", "seconds_high"))
    }
    frame = (
        rows.drop(columns="samples")
        .assign(
            full=rows["layout"],  # what the page highlights
            layout=_contenders(rows),
            panel=[mode_name(m).capitalize() for m in rows["mode"]],
            shown=[formats.seconds(s / units) for s, units in zip(rows["seconds"], rows["units"])],
            length=rows["tokens"],
            **costs,
        )
        .sort_values("length", kind="stable")
    )
    names = list(dict.fromkeys(frame["panel"]))
    style = Style(list(dict.fromkeys(frame["layout"])))
    y = alt.Y("cost:Q", scale=alt.Scale(zero=True), title="Microseconds a token")
    tips = tooltips(("shown", "a token"), ("rounds", "rounds"), ("length", "tokens"))
    curves = style.curves(frame, lengths_axis(frame["length"].tolist(), "Tokens"), y, tips)
    chart = panels(curves, frame, names, columns=2, width=PANEL, height=220, free=True)
    title = titled("What a token costs, by length", variant)
    caption = "Median over the rounds, bands from the first to the third quartile; tokens on a logarithmic axis. "
    caption += "Of decoding, the tokens that were read before."
    text = at_the_end(frame, "tokens", "shown")
    subtitle = "microseconds a token, lower is better, flat is linear time"
    named = {"layout": "layout, what ran", "panel": "of", "tokens": "tokens", "cost": "microseconds a token"}
    data = in_words(frame, {**named, "low": "first quartile", "high": "third quartile", "rounds": "rounds"})
    return Figure(name, title, caption, text, finish(chart, title, subtitle), data)


def _ratio_table(run: RunData, measure: str) -> Table:
    found = run[f"{measure}_ratios"]
    held = found.sort_values("bar", key=pd.isna, kind="stable")  # those with a bar first
    rows = [
        [
            f"{ratios.topic(r)}{in_brackets(r.variant)}",
            r.layout,
            ratios.number(r),
            ratios.bar(r),
            ratios.outcome(r),
        ]
        for r in rows_of(held)
    ]
    columns = ["What", "Layout", "Value", "Bar", "Outcome"]
    note = "Of the medians; in brackets the widest range that the quartiles allow."
    table = Table(f"{measure}-ratios", "Ratios, and the bars they are held to", columns, rows, note, 2)
    return machine_column(table, held["variant"], run.places)


def _time_table(run: RunData, measure: str) -> Table:
    times = run[measure]
    rows = [
        [
            f"{mode_name(r.mode)}, {tokens(r.tokens)}{in_brackets(r.variant)}",
            r.layout,
            f"{r.op}: {r.backend}",
            formats.whole(r.batch),
            f"{formats.seconds(r.seconds)} [{formats.seconds(r.seconds_low)}, {formats.seconds(r.seconds_high)}]",
            formats.seconds(r.seconds / r.units),
            formats.bytes_(r.peak_bytes),
            formats.bytes_(r.floor_bytes),
            formats.si(r.seconds / r.floor_seconds),
            formats.whole(r.rounds),
            r.ran or formats.NOTHING,
        ]
        for r in rows_of(times)
    ]
    columns = ["What", "Layout", "Backend", "Batch", "Seconds", "A token", "Peak", "Floor", "Times floor", "Rounds"]
    columns += ["Ran"]
    rates = sorted(times["copy_bandwidth"].dropna().unique())
    copied = formats.listing([f"{formats.bytes_(rate)}/s" for rate in rates])
    methods = formats.listing(sorted({str(m) for m in times["method"].dropna()}))
    note = (
        "Seconds of a call, in decoding of a token: median [first, third quartile]. Peak: bytes above what was "
        f"there before the call; how they were read: {methods}."
    )
    note += compiled_note(times)
    if rates:
        note += f" Floor: bytes that must be moved; as time at the rate of a copy in the same case: {copied}."
    table = Table(measure, "What ran in turn, in one process", columns, rows, note, 3)
    return machine_column(table, times["variant"], run.places)
