"""Recall as heat maps, a panel for each taught layout: load by length, and depth by length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import MUTED, PERCENT, Figure, Style, finish, on_page, titled, tooltips
from .recall import Recall, asked
from .recall_figures import broken_lines, origin, texts, trained_text
from .recall_tables import counted
from .statistics import rows_of
from .table import numbered
from .tables import RunData
from .taught import load_text, of_needles

_CELL = (46, 24)  # pixels
_ROOM = 540  # pixels for the panels of a row
_NAME = 210  # pixels for a name above a panel
_DARK = 0.45  # from this accuracy on, numbers in black are read better than white ones
_ANSWERED, _FAILED, _UNASKED = "answered", "failed", "not asked"


def heat_figures(run: RunData) -> Iterator[Figure]:
    """Every heat map of recall; the names of those of a second experiment end in `-2`."""
    for make in (_load_by_length, _depth_by_length):
        for number, recall in enumerate(asked(run)):
            yield from make(recall, run, number)


# --- Load by length ---


def _load_by_length(recall: Recall, run: RunData, number: int) -> Iterator[Figure]:
    top = recall.headline
    cells = texts(recall.where(passes=top.passes, memory=top.memory))
    lengths = sorted({*map(int, cells["length"]), *(n for _, n in recall.failed)})
    loads = sorted({int(n) for n in cells["load"]})
    if len(lengths) < 2 or len(loads) < 2:
        return
    frame = _grid(recall, cells, lengths, loads)
    down = [f"{n:,}" for n in reversed(loads)]
    across = [_mark(n) for n in lengths]
    unit = "Load (needles)" if of_needles(recall.task) else "Load"
    tips = tooltips(("tokens", "length"), ("row", "load"), ("shown", "accuracy [95 %]"), ("counts", "correct"))
    tips += [alt.Tooltip("seeds_shown:N", title="seeds"), alt.Tooltip("state:N", title="state")]
    outline = _outline(recall, lengths, loads)
    style = Style(run.layouts, legend=None)
    chart = _heat(frame, style, across, ("row", down, unit), recall.layouts, tips, outline)
    title = titled("How much each layout recalls, by load and length", recall.variant)
    caption = f"{recall.noun}, in per cent; one colour scale from 0 to 100 % for all panels. ✕: no answers, since the "
    caption += "cases failed (point at it for why); a dot on grey: the suite did not ask for it. "
    caption += (
        f"Outlined: no longer and no fuller than what was {trained_text(recall)}. " if outline is not None else ""
    )
    caption += f"Intervals in the tables; {_passes_text(top.passes, top.memory)}."
    text = f"Accuracy at {top.text(recall.task)}, and least over all cells: {_extremes(frame, recall, top)}."
    chance = recall.cells["chance"].mean()
    more = [] if formats.missing(chance) else [f"chance: {formats.percent(chance)}"]
    subtitle = [*broken_lines(", ".join(["brighter is better", *more]), 96), *origin(recall)[1:]]
    data = _written(frame, {"load": "load"})
    yield Figure(numbered("recall-map", number), title, caption, text, finish(chart, title, subtitle), data)


def _grid(recall: Recall, cells: pd.DataFrame, lengths: list[int], loads: list[int]) -> pd.DataFrame:
    """Every length and load of every taught layout that was asked: what it answered, or why there is nothing."""
    known = {(r.layout, r.length, r.load): r for r in rows_of(cells)}
    rows = []
    for layout in recall.layouts:
        for length in lengths:
            for load in loads:
                cause = recall.failed.get((layout, length))
                place = {"layout": layout, **_place(length), "load": load, "row": f"{load:,}"}
                rows.append({**place, **_cell(known.get((layout, length, load)), cause)})
    return pd.DataFrame(rows)


def _cell(found: Any, cause: str | None) -> dict[str, Any]:
    if found is not None:
        said = {key: getattr(found, key) for key in ("accuracy", "low", "high", "correct", "total")}
        said |= {key: getattr(found, key) for key in ("shown", "counts", "seeds_shown", "state")}
        return {**said, "status": _ANSWERED, "text": f"{100 * found.accuracy:.0f}", "seeds": found.seeds}
    nothing: dict[str, Any] = dict.fromkeys(("accuracy", "low", "high", "correct", "total", "seeds"))
    nothing |= dict.fromkeys(("counts", "seeds_shown", "state"), formats.NOTHING)
    status = _UNASKED if cause is None else _FAILED
    return {**nothing, "shown": cause or _UNASKED, "status": status, "text": "·" if cause is None else "✕"}


def _outline(recall: Recall, lengths: list[int], loads: list[int]) -> dict[str, str] | None:
    """The rectangle of cells within what was trained, by its first and last cell; None if there is no such cell."""
    if not recall.trained_lengths or not recall.trained_loads:
        return None
    within = (
        [n for n in lengths if n <= recall.trained_lengths[-1]],
        [n for n in loads if n <= recall.trained_loads[-1]],
    )
    if not all(within):
        return None
    x, y = within
    return {"x": _mark(x[0]), "x2": _mark(x[-1]), "y": f"{y[-1]:,}", "y2": f"{y[0]:,}"}


def _extremes(frame: pd.DataFrame, recall: Recall, top: Any) -> str:
    there = frame[frame["status"] == _ANSWERED]
    said = []
    for layout, own in there.groupby("layout", sort=False):
        at = own[(own["length"] == top.length) & (own["load"] == top.load)]["shown"]
        least = next(rows_of(own.sort_values("accuracy", key=lambda shares: shares.astype(float), kind="stable")))
        here = at.iloc[0] if len(at) else recall.missing_text(str(layout), top.length)
        where = f"{formats.percent(least.accuracy)} at {least.row} in {least.tokens} tokens"
        said.append(f"{layout} {here}, least {where}")
    return "; ".join(said)


def _passes_text(passes: int, memory: str) -> str:
    return f"{passes} pass{'es' if passes > 1 else ''} over the context, {memory} memory"


# --- Depth by length ---


def _depth_by_length(recall: Recall, run: RunData, number: int) -> Iterator[Figure]:
    top = recall.headline
    own = counted(run, recall, recent=False).dropna(subset=["depth"])
    own = own[own["load"] == top.load].sort_values(["length", "depth"])
    if not len(own):
        return
    edges = [*sorted(own["depth"].unique()), 1.0]
    buckets = {low: f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in pairwise(edges)}
    frame = _depths(recall, own, buckets)
    across = list(dict.fromkeys(frame["at"]))
    tips = tooltips(("tokens", "length"), ("where", "depth"), ("shown", "accuracy"), ("counts", "correct"))
    style = Style(run.layouts, legend=None)
    down = list(buckets.values())
    chart = _heat(frame, style, across, ("where", down, "Depth"), recall.layouts, tips, None)
    of = f": {load_text(top.load, recall.task)}" if top.load else ""
    title = titled(f"Where answers were lost, by depth and length{of}", recall.variant)
    caption = (
        "Where in the context the answer lay: 0 % is its beginning, 100 % right before the questions. In per cent, "
    )
    caption += "taught seeds pooled, without intervals; recent answers are left out."
    there = frame[frame["status"] == _ANSWERED]
    text = "; ".join(_worst(str(layout), rows) for layout, rows in there.groupby("layout", sort=False)) + "."
    subtitle = ["brighter is better; top: the beginning of the context", *origin(recall)[1:]]
    name, data = numbered("recall-depth", number), _written(frame, {"where": "depth"})
    yield Figure(name, title, caption, text, finish(chart, title, subtitle), data)


def _depths(recall: Recall, own: pd.DataFrame, buckets: dict[float, str]) -> pd.DataFrame:
    """Every length and depth of every taught layout that was asked."""
    known = {(r.layout, r.length, r.depth): r for r in rows_of(own)}
    failed = {n for _, n in recall.failed}
    rows = []
    for layout in recall.layouts:
        for length in sorted({*map(int, own["length"]), *failed}):
            for depth, where in buckets.items():
                found = known.get((layout, length, depth))
                cell = _cell(None, recall.failed.get((layout, length)))
                if found is not None:
                    said = {"accuracy": found.accuracy, "correct": found.correct, "total": found.total}
                    cell = {**said, "shown": formats.percent(found.accuracy), "status": _ANSWERED}
                    cell |= {"text": f"{100 * found.accuracy:.0f}", "counts": f"{found.correct:,} of {found.total:,}"}
                rows.append({"layout": layout, **_place(length), "where": where, **cell})
    columns = ["layout", "length", "tokens", "at", "where", "accuracy", "correct", "total", "shown", "counts"]
    columns += ["status", "text"]
    return pd.DataFrame(rows, columns=columns)


def _worst(layout: str, rows: pd.DataFrame) -> str:
    least = rows.loc[rows["accuracy"].astype(float).idxmin()]
    return f"{layout}: least {least['shown']}, at {least['where']} of {least['tokens']} tokens"


# --- What both share ---


def _heat(
    frame: pd.DataFrame,
    style: Style,
    across: list[str],
    rows: tuple[str, list[str], str],
    layouts: list[str],
    tips: list[alt.Tooltip],
    outline: dict[str, str] | None,
) -> Any:
    """Panels of cells with their numbers. rows: the field of the rows, its values from above, and its title."""
    field, down, title = rows
    named = min(_NAME, 8 * max(map(len, layouts)))
    cell = max(_CELL[0], *(7 * len(name) + 6 for name in across), math.ceil(named / len(across)))
    width, height = cell * len(across), _CELL[1] * len(down)
    columns = max(1, _ROOM // (width + 64))
    plain = alt.Axis(labelAngle=0, ticks=False, domain=False, grid=False)
    columns_scale, rows_scale = alt.Scale(domain=across), alt.Scale(domain=down)
    x = alt.X("at:O", scale=columns_scale, title="Length (tokens)", axis=plain)
    y = alt.Y(f"{field}:O", scale=rows_scale, title=title, axis=plain)
    scale = alt.Scale(domain=[0, 1], scheme="viridis", clamp=True)
    marked = [0, 0.25, 0.5, 0.75, 1]
    legend = alt.Legend(
        title="Accuracy", orient="bottom", labelExpr=PERCENT, gradientLength=260, titleOrient="left", values=marked
    )
    base = style.within(alt.Chart()).encode(x=x, y=y)
    there, rest = alt.datum.status == _ANSWERED, alt.datum.status != _ANSWERED
    colour = alt.Color("accuracy:Q", scale=scale, legend=legend)
    light = alt.condition(f"datum.accuracy < {_DARK}", alt.value("white"), alt.value("black"))
    gap: dict[str, Any] = {"stroke": on_page("white", "#1d2126"), "strokeWidth": 1}
    layers = [
        base.transform_filter(there).mark_rect(**gap).encode(color=colour, opacity=style.emphasis, tooltip=tips),
        base.transform_filter(rest)
        .mark_rect(color=on_page("#e4e4e4", "#31383f"), **gap)
        .encode(opacity=style.emphasis, tooltip=tips),
        base.transform_filter(there).mark_text(fontSize=11).encode(text="text:N", color=light, opacity=style.emphasis),
        base.transform_filter(rest)
        .mark_text(fontSize=12, color=MUTED)
        .encode(text="text:N", opacity=style.emphasis, tooltip=tips),
    ]
    if outline is not None:
        box = alt.Chart(pd.DataFrame([outline])).mark_rect(filled=False, stroke="#D55E00", strokeWidth=2.5)
        ends = {"x2": alt.X2("x2", bandPosition=1), "y2": alt.Y2("y2", bandPosition=1)}
        start = alt.X("x:O", scale=columns_scale, bandPosition=0), alt.Y("y:O", scale=rows_scale, bandPosition=0)
        layers.append(box.encode(x=start[0], y=start[1], **ends))
    facet = alt.Facet("layout:N", sort=layouts, title=None, header=alt.Header(labelLimit=width + 40))
    chart = alt.layer(*layers, data=frame).properties(width=width, height=height)
    chart = chart.facet(facet, columns=min(columns, len(layouts)), spacing=18)
    return chart.resolve_axis(x="independent")  # a shared one would lie below the lowest row alone


def _place(length: int) -> dict[str, Any]:
    return {"length": length, "tokens": f"{length:,}", "at": _mark(length)}


def _mark(length: int) -> str:
    """A length as narrow as a cell."""
    return f"{length:,}" if length < 100_000 else formats.si(length)


def _written(frame: pd.DataFrame, rows: dict[str, str]) -> pd.DataFrame:
    """What goes into the CSV."""
    named = {"layout": "layout", "length": "length", **rows, "accuracy": "accuracy", "low": "low", "high": "high"}
    named |= {"correct": "correct", "total": "questions", "seeds": "seeds", "status": "status"}
    return frame[[name for name in named if name in frame]].rename(columns=named)
