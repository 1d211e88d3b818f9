"""What sparse memories did while they were asked: gates, and which slots were written, read and used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import Figure, Style, alongside, finish, lengths_axis, share_axis, titled, tooltips
from .lines import KEYS, Lines, Row, measured
from .recall import Recall, asked
from .statistics import rows_of
from .table import Table, numbered
from .tables import RunData
from .taught import load_text, of_needles

SPARSE = [*KEYS, "layer", "length", "load", "n_slots", "tokens", "sequences"]
SPARSE += [f"{which}_{part}" for which in ("gate", "gate_asked") for part in ("mean", "low", "median", "high")]
SPARSE += ["written", "hits", "used", "perplexity", "accesses", "case"]

_PANEL = (206, 140)
_COLUMNS = 3
_MEMORY = ["layout", "layer", "length", "load"]
_GATES = {"gate": "all tokens", "gate_asked": "tokens that answer"}
_SLOTS = {
    "written": "slots written",
    "hits": "accesses that found a written slot",
    "evenness": "effective slots, by entropy",
}
# told apart without colour too
_COLOURS, _SHAPES = ["#0072B2", "#D55E00", "#009E73"], ["circle", "square", "triangle-up"]


def sparse_rows(lines: Lines) -> Iterator[Row]:
    """One row for every sparse memory, length and load of a model that was asked for recall."""
    for _, metrics, known in measured(lines, "recall"):
        for found in metrics.get("memories") or []:  # none in runs from before they were noted
            plain = {key: value for key, value in found.items() if key in SPARSE}
            gates = {f"{which}_{part}": value for which in _GATES for part, value in _gate(found.get(which))}
            yield {**known, **plain, **gates, "load": found.get("load") or 0}


def _gate(found: dict[str, Any] | None) -> Iterator[tuple[str, float | None]]:
    quantiles = (found or {}).get("quantiles") or {}
    yield "mean", (found or {}).get("mean")
    yield from ((part, quantiles.get(key)) for part, key in (("low", "0.05"), ("median", "0.5"), ("high", "0.95")))


def sparse_figures(run: RunData) -> Iterator[Figure]:
    """Gates and slots over the length or the load, whichever has more values; none where both have only one."""
    for number, recall in enumerate(asked(run)):
        own = _pooled(run["sparse_memories"], recall)
        if len(own) and max(own["length"].nunique(), own["load"].nunique()) > 1:
            axis, own, where = _axis(own, recall)
            yield from _gate_figure(run, own, axis, where, recall, number)
            yield _slot_figure(run, own, axis, where, recall, number)


def _pooled(memories: pd.DataFrame, recall: Recall) -> pd.DataFrame:
    """The mean of the seeds, a row for each layout, layer, length and load."""
    own = memories[memories["variant"] == recall.variant]
    numbers = [name for name in SPARSE if name not in (*_MEMORY, "variant", "seed", "case")]
    own = own.astype(dict.fromkeys(numbers, float))
    pooled = own.groupby(_MEMORY, sort=False, as_index=False)
    means = pooled.agg({**dict.fromkeys(numbers, "mean"), "seed": "nunique"}).rename(columns={"seed": "seeds"})
    means["evenness"] = means["perplexity"] / means["n_slots"]
    means["panel"] = _panel_names(means)
    order = {name: i for i, name in enumerate(recall.layouts)}
    means["place"] = means["layout"].map(order)
    return means.sort_values(["place", "layer", "length", "load"], kind="stable", ignore_index=True)


def _panel_names(means: pd.DataFrame) -> list[str]:
    """The layout, and its layer where it has several."""
    several = means.groupby("layout")["layer"].transform("nunique") > 1
    return [
        f"{layout}, {layer}" if more else str(layout)
        for layout, layer, more in zip(means["layout"], means["layer"], several)
    ]


def _axis(own: pd.DataFrame, recall: Recall) -> tuple[alt.X, pd.DataFrame, str]:
    """Length at one load or load at one length, the other as in the verdict if it was asked there."""
    top = recall.headline
    by_length = own["length"].nunique() >= own["load"].nunique()
    other, wanted = ("load", top.load) if by_length else ("length", top.length)
    fixed = wanted if wanted in set(own[other]) else own[other].max()
    own = own[own[other] == fixed]
    if by_length:
        where = load_text(fixed, recall.task) if fixed else ""
        return lengths_axis(own["length"].tolist(), "Length (tokens)", width=_PANEL[0] - 40), own, where
    title = "Load (needles)" if of_needles(recall.task) else "Load"
    return lengths_axis(own["load"].tolist(), title, field="load", width=_PANEL[0] - 40), own, f"{int(fixed):,} tokens"


def _gate_figure(
    run: RunData, own: pd.DataFrame, x: alt.X, where: str, recall: Recall, number: int
) -> Iterator[Figure]:
    parts = ["mean", "low", "high"]
    frames = [
        own.assign(**{p: own[f"{which}_{p}"] for p in parts}, series=label).dropna(subset=parts)
        for which, label in _GATES.items()
    ]
    frame = pd.concat(frames)[["layout", "layer", "panel", "length", "load", "series", *parts, "seeds"]]
    if not len(frame):
        return
    frame["shown"] = [f"{r.mean:.3f} ({r.low:.2f} to {r.high:.2f})" for r in rows_of(frame)]
    style = Style(run.layouts, legend=None)
    y = alt.Y("mean:Q", scale=alt.Scale(domain=[0, 1]), title="Gate", axis=alt.Axis(values=[0, 0.5, 1], format="g"))
    tips = [*_places(), alt.Tooltip("series:N", title="of"), alt.Tooltip("shown:N", title="mean (5 to 95 %)")]
    chart = _panels(frame, style, x, y, list(_GATES.values()), tips)
    title = titled(f"Gates of the sparse memories{f': {where}' if where else ''}", recall.variant)
    caption = (
        "How much of what it retrieved each memory let through: 0 is nothing, 1 all. Mean of the tokens and of the "
    )
    caption += "taught seeds; bars from 5 to 95 % of the tokens; of the first sequences of each length and load."
    text = "; ".join(f"{r.panel}, {r.series}, {_at(r)}: {r.shown}" for r in rows_of(_last(frame))) + "."
    data = frame.drop(columns=["panel", "shown"]).rename(columns={"series": "tokens", "low": "5 %", "high": "95 %"})
    subtitle = "1 lets all through that was retrieved, 0 nothing; bars: 5 to 95 % of the tokens"
    yield Figure(numbered("gates", number), title, caption, text, finish(chart, title, subtitle), data)


def _slot_figure(run: RunData, own: pd.DataFrame, x: alt.X, where: str, recall: Recall, number: int) -> Figure:
    kept = ["layout", "layer", "panel", "length", "load", "n_slots", "used", "accesses", "seeds"]
    frame = pd.concat([own[kept].assign(share=own[key], series=label) for key, label in _SLOTS.items()])
    frame = frame.assign(
        shown=frame["share"].map(formats.percent),
        slots=[f"{r.used:,.0f} of {r.n_slots:,.0f}" for r in rows_of(frame)],
        each=[f"{n:.3g}" for n in frame["accesses"]],
    )
    style = Style(run.layouts, legend=None)
    tips = [*_places(), alt.Tooltip("series:N", title="share of"), alt.Tooltip("shown:N", title="share")]
    tips += [alt.Tooltip("slots:N", title="slots accessed"), alt.Tooltip("each:N", title="accesses to each of them")]
    y = share_axis("share", "Share")
    chart = _panels(frame, style, x, y, list(_SLOTS.values()), tips)
    title = titled(f"Use of the slots{f': {where}' if where else ''}", recall.variant)
    caption = (
        "Of each sparse memory, the mean over sequences and taught seeds: the share of its slots that were written, "
    )
    caption += (
        "of its accesses those that found a slot which an earlier chunk had written, and the effective number of "
    )
    caption += "slots (exponential of the entropy: so many, used alike, would be as even), as a share of all."
    text = "; ".join(f"{r.panel}, {_at(r)}, {r.series}: {r.shown}" for r in rows_of(_last(frame))) + "."
    data = frame[["layout", "layer", "length", "load", "n_slots", "used", "accesses", "seeds", "series", "share"]]
    data = data.rename(columns={"n_slots": "slots", "used": "slots accessed", "accesses": "accesses to each"})
    chart = finish(chart, title, "shares of slots and of accesses, mean over sequences and seeds")
    return Figure(numbered("slots", number), title, caption, text, chart, data)


def _panels(frame: pd.DataFrame, style: Style, x: alt.X, y: alt.Y, series: list[str], tips: list[alt.Tooltip]) -> Any:
    """A panel for each memory, a line for each series; bars `low..high` where the frame has them."""
    legend = alt.Legend(orient="bottom", title=None, labelLimit=320, symbolStrokeWidth=0, symbolOpacity=1, columns=3)
    colour = alt.Color("series:N", scale=alt.Scale(domain=series, range=_COLOURS[: len(series)]), legend=legend)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=series, range=_SHAPES[: len(series)]), legend=legend)
    base = style.within(alt.Chart()).encode(x=x, color=colour, opacity=style.emphasis)
    bars = [base.mark_rule(strokeWidth=1.5).encode(y=alongside(y, "low"), y2="high:Q")] if "low" in frame else []
    line = base.mark_line(strokeWidth=1.4).encode(y=y)
    point = base.mark_point(filled=True, size=55).encode(y=y, shape=shape, tooltip=tips)
    chart = alt.layer(*bars, line, point, data=frame)
    names = list(dict.fromkeys(frame["panel"]))
    facet = alt.Facet("panel:N", sort=names, title=None, header=alt.Header(labelLimit=_PANEL[0]))
    chart = chart.properties(width=_PANEL[0], height=_PANEL[1]).facet(
        facet, columns=min(_COLUMNS, len(names)), spacing=14
    )
    return chart.resolve_axis(x="independent")


def _places() -> list[alt.Tooltip]:
    return tooltips(("layer", "layer"), ("length", "length"), ("load", "load"))


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["length"] == frame["length"].max()) & (frame["load"] == frame["load"].max())]


def _at(row: Any) -> str:
    return f"{row.length:,.0f} tokens" + (f", load {row.load:,.0f}" if row.load else "")


def sparse_tables(run: RunData) -> Iterator[Table]:
    """Every memory at every length and load, with what the charts show."""
    for number, recall in enumerate(asked(run)):
        own = _pooled(run["sparse_memories"], recall)
        if len(own):
            rows = [
                [
                    r.layout,
                    r.layer,
                    formats.whole(r.length),
                    formats.whole(r.load) if r.load else formats.NOTHING,
                    _gate_text(r.gate_mean, r.gate_low, r.gate_high),
                    _gate_text(r.gate_asked_mean, r.gate_asked_low, r.gate_asked_high),
                    formats.whole(r.n_slots),
                    formats.percent(r.written),
                    formats.percent(r.hits),
                    formats.whole(r.used),
                    formats.whole(r.perplexity),
                    f"{r.accesses:.3g}",
                ]
                for r in rows_of(own)
            ]
            columns = ["Layout", "Layer", "Length", "Load", "Gate", "Gate, answering", "Slots", "Written"]
            columns += ["Found written", "Accessed", "Effective", "Accesses to each"]
            title = titled("What sparse memories did while they were asked", recall.variant)
            note = (
                "Mean of the taught seeds, over the first sequences of each length and load, each with a fresh memory. "
                "Gate: mean (5 to 95 % of the tokens), of all tokens and of those that answer. Found written: accesses "
                "to a slot that an earlier chunk had written. Effective: so many slots, used alike, would be as even."
            )
            yield Table(numbered("sparse-memories", number), title, columns, rows, note, text_columns=2)


def _gate_text(mean: float, low: float, high: float) -> str:
    return formats.NOTHING if formats.missing(mean) else f"{mean:.3f} ({low:.2f} to {high:.2f})"
