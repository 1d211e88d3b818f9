"""Speed, latency, peak memory and state bytes against the length, with exponents and failures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import (
    BYTES,
    COUNT,
    SECONDS,
    Figure,
    Style,
    at_the_end,
    finish,
    in_words,
    logarithmic_axis,
    titled,
    tooltips,
)
from .growth import Growth, growth
from .machines import with_machine
from .scaling import beside_failures, growth_table, growth_text, panel_of, places, scaling_chart
from .statistics import Interval, pool_speed, rounds_of, rows_of
from .table import Table, numbered
from .tables import RunData

_STATE = "State"  # the one panel of the states
_EXPONENTS = "at the ends of the curves the fitted exponent, n being the length"
Growths = dict[tuple[str, str], Growth]


def speed_figures(run: RunData) -> Iterator[Figure]:
    """Tokens per second, and the seconds of a call, each a chart of panels by mode."""
    for number, (variant, rows) in enumerate(run["speed"].groupby("variant", sort=False)):
        pooled = pool_speed(rows, ["layout", "mode", "length"])
        pooled["panel"] = [panel_of(mode) for mode in pooled["mode"]]
        rates = [Interval(r.tokens_per_second, r.low, r.high) for r in rows_of(pooled)]
        pooled["shown"] = [formats.rate_interval(i) for i in rates]
        pooled["time"] = [formats.seconds(s) for s in pooled["seconds"]]
        failed = places(run["speed_failures"], str(variant))
        yield _rate_figure(run, pooled, failed, number, str(variant))
        yield _latency_figure(run, pooled, failed, _growths(run)[str(variant)], number, str(variant))


def _rate_figure(run: RunData, pooled: pd.DataFrame, failed: pd.DataFrame, number: int, variant: str) -> Figure:
    frame = pooled[["layout", "panel", "length", "tokens_per_second", "low", "high", "shown", "time", "rounds"]]
    tips = _tips(("shown", "speed [quartiles]"), ("time", "time of a round"), ("rounds", "rounds"))
    y = logarithmic_axis("tokens_per_second", COUNT, "Tokens per second")
    chart = scaling_chart(Style(run.layouts), frame, y, tips, failed=failed, edge="bottom")
    title = titled("Speed by length", variant)
    caption = "Median over the rounds, bands from the first to the third quartile; both axes logarithmic."
    text = at_the_end(frame, "length", "shown")
    named = {"tokens_per_second": "tokens per second", "low": "first quartile", "high": "third quartile"}
    data = _written(frame, failed, {**named, "rounds": "rounds"})
    chart = finish(chart, title, "tokens per second, median and quartiles; higher is better")
    caption += beside_failures(failed)
    return Figure(numbered("speed", number), title, caption, text, chart, data)


def _latency_figure(
    run: RunData, pooled: pd.DataFrame, failed: pd.DataFrame, growths: Growths, number: int, variant: str
) -> Figure:
    bounds = {"low": pooled["seconds_low"], "high": pooled["seconds_high"]}
    kept = ["layout", "panel", "length", "seconds", "low", "high", "time", "rounds"]
    frame = _with_growth(pooled.assign(**bounds)[kept], growths)
    tips = _tips(("time", "time"), ("growth", "grows as"), ("rounds", "rounds"))
    y = logarithmic_axis("seconds", SECONDS, "Seconds")
    chart = scaling_chart(Style(run.layouts), frame, y, tips, failed=failed, growths=growths)
    title = titled("Latency by length", variant)
    caption = (
        "Seconds of a call, in decoding of a token after so many; median over the rounds, bands from the first to "
    )
    caption += "the third quartile; both axes logarithmic." + _exponent_note(growths) + beside_failures(failed)
    text = growth_text(growths) or at_the_end(frame, "length", "time")
    named = {"seconds": "seconds", "low": "first quartile", "high": "third quartile", "rounds": "rounds"}
    data = _written(frame, failed, {**named, **({"growth": "grows as"} if growths else {})})
    subtitle = ["seconds of a call, median and quartiles; lower is better", *([_EXPONENTS] if growths else [])]
    chart = finish(chart, title, subtitle)
    return Figure(numbered("latency", number), title, caption, text, chart, data)


def speed_growths(rows: pd.DataFrame) -> Growths:
    """How the seconds of each mode and layout grow; rows of the table `speed`."""
    samples: dict[Any, dict[Any, Any]] = {
        key: {length: rounds_of(at) for length, at in own.groupby("length")}
        for key, own in rows.groupby(["mode", "layout"], sort=False)
    }
    found = {(panel_of(mode), str(layout)): growth(rounds) for (mode, layout), rounds in samples.items()}
    return {key: known for key, known in found.items() if known is not None}


@lru_cache(maxsize=2)
def _growths(run: RunData) -> dict[str, Growths]:
    """How speed grows, by variant."""
    return {str(variant): speed_growths(rows) for variant, rows in run["speed"].groupby("variant", sort=False)}


def speed_growth_tables(run: RunData) -> Iterator[Table]:
    for number, variant in enumerate(run["speed"]["variant"].unique()):
        what = "the time of a call, in decoding of a token,"
        tables = growth_table(numbered("speed-growth", number), what, _growths(run)[str(variant)], variant)
        yield from (with_machine(table, str(variant), run.places) for table in tables)


# --- Memory ---


def memory_figures(run: RunData) -> Iterator[Figure]:
    """Peak bytes, a chart of panels by mode."""
    for number, (variant, rows) in enumerate(run["memory"].groupby("variant", sort=False)):
        failed = places(run["memory_failures"], str(variant))
        frame = _peaks(rows)
        if not len(frame):
            continue
        growths = byte_growths(frame, "peak_bytes")
        frame = _with_growth(frame, growths)
        y = logarithmic_axis("peak_bytes", BYTES, "Peak bytes above the model")
        tips = _tips(("shown", "peak"), ("growth", "grows as"))
        chart = scaling_chart(Style(run.layouts), frame, y, tips, failed=failed, growths=growths)
        title = titled("Peak memory by length", str(variant))
        zeros = int((rows["peak_bytes"] == 0).sum())
        caption = "Peak of the memory allocated above the resident model; both axes logarithmic."
        caption += _left_out(zeros) + _exponent_note(growths) + beside_failures(failed)
        text = growth_text(growths) or at_the_end(frame, "length", "shown")
        data = _written(frame, failed, {"peak_bytes": "peak bytes", **({"growth": "grows as"} if growths else {})})
        subtitle = ["peak bytes, lower is better", *([_EXPONENTS] if growths else [])]
        chart = finish(chart, title, subtitle)
        yield Figure(numbered("memory", number), title, caption, text, chart, data)


def memory_growth_tables(run: RunData) -> Iterator[Table]:
    """Of the peaks, and of the state."""
    for number, (variant, rows) in enumerate(run["memory"].groupby("variant", sort=False)):
        growths = byte_growths(_peaks(rows), "peak_bytes")
        tables = growth_table(numbered("memory-growth", number), "peak memory", growths, variant)
        yield from (with_machine(table, str(variant), run.places) for table in tables)
    yield from growth_table("state-growth", "the state", byte_growths(_states(run), "state_bytes"))


def _peaks(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the seeds, of what fits on a logarithmic axis."""
    positive = rows[rows["peak_bytes"] > 0]
    pooled = positive.groupby(["layout", "mode", "length"], sort=False, as_index=False)["peak_bytes"].median()
    values = {"low": pooled["peak_bytes"], "high": pooled["peak_bytes"]}
    panel, shown = [panel_of(mode) for mode in pooled["mode"]], pooled["peak_bytes"].map(formats.bytes_)
    return pooled.assign(**values, panel=panel, shown=shown).drop(columns="mode")


def byte_growths(frame: pd.DataFrame, value: str) -> Growths:
    """How bytes of each panel and layout grow; one reading at each length, so without intervals."""
    found = {
        (str(panel), str(layout)): growth({int(n): [held] for n, held in zip(own["length"], own[value])})
        for (panel, layout), own in frame.groupby(["panel", "layout"], sort=False)
    }
    return {key: known for key, known in found.items() if known is not None}


def state_figure(run: RunData) -> Iterator[Figure]:
    """Bytes of the state of one sequence."""
    frame = _states(run)
    if not len(frame):
        return
    growths = byte_growths(frame, "state_bytes")
    frame = _with_growth(frame, growths)
    y = logarithmic_axis("state_bytes", BYTES, "State (bytes)")
    tips = tooltips(("shown", "state"), ("length", "tokens read"), ("growth", "grows as"))
    chart = scaling_chart(Style(run.layouts), frame, y, tips, growths=growths)
    title = "What a sequence has to keep"
    caption = (
        "Bytes of the state of one sequence after so many tokens; both axes logarithmic. Where recall was asked, that "
    )
    caption += "of the first load at each length: a memory that fills with what it is told depends on it."
    caption += _left_out(int((run["states"]["state_bytes"] == 0).sum())) + _exponent_note(growths)
    data = _written(frame, None, {"state_bytes": "state bytes", **({"growth": "grows as"} if growths else {})})
    subtitle = ["state bytes of one sequence, lower is better", *([_EXPONENTS] if growths else [])]
    text = at_the_end(frame, "length", "shown")
    yield Figure("state", title, caption, text, finish(chart, title, subtitle), data)


def _states(run: RunData) -> pd.DataFrame:
    positive = run["states"][run["states"]["state_bytes"] > 0]
    shown, values = positive["state_bytes"].map(formats.bytes_), positive["state_bytes"]
    return positive.assign(low=values, high=values, shown=shown, panel=_STATE)


# --- What they share ---


def _tips(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    return tooltips(("panel", "of"), ("length", "length"), *fields)


def _with_growth(frame: pd.DataFrame, growths: Growths) -> pd.DataFrame:
    texts = {key: known.text for key, known in growths.items()}
    return frame.assign(growth=[texts.get(key, formats.NOTHING) for key in zip(frame["panel"], frame["layout"])])


def _exponent_note(growths: Growths) -> str:
    return " Exponents are fitted to the greater lengths; the table says to which, with intervals." if growths else ""


def _left_out(count: int) -> str:
    return f" {count} values of 0 bytes do not fit on a logarithmic axis and are left out." if count else ""


def _written(frame: pd.DataFrame, failed: pd.DataFrame | None, columns: dict[str, str]) -> pd.DataFrame:
    """The data for CSV, with the lengths that failed and why."""
    named = {"layout": "layout", "panel": "of", "length": "length", **columns}
    rows = in_words(frame, named)
    if failed is None or not len(failed):
        return rows
    causes = in_words(failed, {"layout": "layout", "panel": "of", "length": "length", "cause": "failed"})
    return pd.concat([rows, causes], ignore_index=True)
