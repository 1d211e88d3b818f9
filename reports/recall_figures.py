"""The charts of recall: against length, load, passes and state bytes, and by depth. Untaught layouts have no mark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import (
    BYTES,
    HEIGHT,
    LINES,
    MUTED,
    PANEL,
    WIDTH,
    Figure,
    Style,
    alongside,
    at_the_end,
    finish,
    in_words,
    lengths_axis,
    panels,
    round_values,
    share_axis,
    titled,
    tooltips,
)
from .inference import LEAST_SEEDS
from .labels import Placement, beside_points, spread
from .recall import Cell, Recall, asked
from .recall_tables import passes_cell
from .statistics import Interval, rows_of
from .table import numbered
from .tables import RunData
from .taught import load_text, of_needles

_LABEL = 16  # pixels from one name at the end of a curve to the next
_TIPS = (("shown", "accuracy [95 %]"), ("counts", "correct"), ("seeds_shown", "seeds"), ("state", "state"))
_PLACE = {"layout": "layout", "length": "length"}
_PANELS = 6  # as many small multiples as one chart has; the tables have all values


def recall_figures(run: RunData) -> Iterator[Figure]:
    """Every chart of recall; the names of those of a second experiment end in `-2`."""
    for make in (_by_length, _by_state, _lengths_at_loads, _loads_at_lengths, _passes):
        for number, recall in enumerate(asked(run)):
            yield from make(run, recall, number)


# --- What the charts share ---


def texts(cells: pd.DataFrame) -> pd.DataFrame:
    """With what is shown when a mark is pointed at."""
    ranges = [f"{formats.percent(r.seed_low)} to {formats.percent(r.seed_high)}" for r in rows_of(cells)]
    return cells.assign(
        shown=[formats.percent_interval(Interval(r.accuracy, r.low, r.high)) for r in rows_of(cells)],
        counts=[f"{r.correct:,} of {r.total:,}" for r in rows_of(cells)],
        seeds_shown=[f"{r.seeds} ({between})" for r, between in zip(rows_of(cells), ranges)],
        state=cells["state_bytes"].map(formats.bytes_),
    ).drop(columns="backends")


def cell_data(cells: pd.DataFrame) -> pd.DataFrame:
    """Estimates for CSV."""
    names = {**_PLACE, "load": "load", "passes": "passes", "memory": "memory", "accuracy": "accuracy", "low": "low"}
    names |= {"high": "high", "kind": "interval of", "correct": "correct", "total": "questions", "seeds": "seeds"}
    return in_words(cells, {**names, "chance": "chance", "state_bytes": "state bytes"})


def origin(recall: Recall, *more: str) -> list[str]:
    """The lines under a title: what bands and seeds are, then who is not in the chart, and why."""
    seeds = recall.answers["seed"].nunique()
    parts = ["one taught seed" if seeds == 1 else f"mean of up to {seeds} taught seeds", "bands: 95 % intervals", *more]
    lines = [", ".join(parts)]
    few = recall.cells[recall.cells["kind"] != "new seeds"]["layout"].unique()
    if len(few):
        whose = "all" if len(few) == recall.cells["layout"].nunique() else ", ".join(few)
        lines += broken_lines(
            f"intervals of these trained models, not of new seeds (fewer than {LEAST_SEEDS}): {whose}", 110
        )
    if recall.untaught:
        names = [formats.shorten(f"{name} ({recall.taught[name].short})", 44) for name in recall.untaught]
        lines += broken_lines(f"not taught, so not asked: {', '.join(names)}", 96)
    return lines


def broken_lines(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` characters, cut at spaces."""
    lines = [""]
    for word in text.split():
        fits = len(lines[-1]) + len(word) < width
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if fits else [*lines, word]
    return lines


def _trained_band(low: float, high: float, x: alt.X, field: str, label: str) -> list[Any]:
    """The range that was trained, shaded from bottom to top, with its name above."""
    frame = pd.DataFrame([{field: low, "until": high, "text": label}])
    base = alt.Chart(frame).encode(x=alongside(x, field))
    text = base.mark_text(align="left", baseline="bottom", dy=-4, color=MUTED, fontSize=11)
    label_layer = text.encode(y=alt.value(0), text="text:N")
    if low == high:
        return [base.mark_rule(color=LINES, strokeDash=[2, 3]), label_layer]
    return [base.mark_rect(color=LINES, opacity=0.16).encode(x2="until:Q"), label_layer]


def _range_text(values: list[int]) -> str:
    ends = [formats.whole(n) for n in (values[0], values[-1])]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _failures(recall: Recall, cells: pd.DataFrame) -> pd.DataFrame:
    """Where curves break off: the length that failed, at the height of the last answer before it."""
    rows = []
    for (layout, length), cause in recall.failed.items():
        own = cells[cells["layout"] == layout].sort_values("length")
        if length in set(own["length"]):
            continue  # other seeds have answers there
        before = own[own["length"] < length]
        height = float(before["accuracy"].iloc[-1]) if len(before) else 0.0
        start = int(before["length"].iloc[-1]) if len(before) else length
        rows.append({"layout": layout, "length": length, "accuracy": height, "from": start, "cause": cause})
    broken = pd.DataFrame(rows, columns=["layout", "length", "accuracy", "from", "cause"]).sort_values("length")
    return broken.drop_duplicates(["layout", "from"])  # once a length has failed, longer ones tell nothing new


def names_beside(
    points: pd.DataFrame, places: list[Placement], names: list[str], style: Style, x: alt.X, y: alt.Y
) -> Iterator[Any]:
    """Names at their places beside points: a layer for each side, as a mark has one alignment."""
    fields = [str(channel.shorthand).removesuffix(":Q") for channel in (x, y)]
    kept = points[["layout", *(["full"] if "full" in points else []), *fields]]
    every = kept.assign(label=names, dx=[p.dx for p in places], dy=[p.dy for p in places])
    for align in dict.fromkeys(place.align for place in places):
        own = every[[place.align == align for place in places]]
        beside: dict[str, Any] = {"dx": alt.ExprRef("datum.dx"), "dy": alt.ExprRef("datum.dy")}
        label = alt.Chart(own).mark_text(**beside, align=align, fontSize=12)
        yield label.encode(x=x, y=y, text="label:N", color=style.colour(), opacity=style.emphasis)


# --- Length ---


def _by_length(run: RunData, recall: Recall, number: int) -> Iterator[Figure]:
    top, style = recall.headline, Style(run.layouts, legend=None)
    cells = texts(recall.where(load=top.load, passes=top.passes, memory=top.memory)).sort_values("length")
    broken = _failures(recall, cells)
    lengths = sorted({*cells["length"], *broken["length"]})
    shaded = _shaded(recall.trained_lengths, lengths)
    x, y = lengths_axis(lengths, least=shaded[0] if shaded else None), share_axis("accuracy", recall.noun)
    height = max(HEIGHT, _LABEL * cells["layout"].nunique())
    chance = cells.groupby("length", as_index=False)["chance"].mean().dropna()
    guess = alt.Chart(chance).mark_line(strokeDash=[3, 3], color=MUTED, strokeWidth=1.2)
    marks = _trained_band(*shaded, x, "length", trained_text(recall)) if shaded else []
    layers = [*marks, guess.encode(x=x, y=alt.Y("chance:Q")), *style.curves(cells, x, y, _length_tips())]
    layers += [*_break_marks(broken, x, y, style), _end_labels(cells, broken, style, height)]
    chart = alt.layer(*layers).properties(width=WIDTH, height=height)
    of = f"{load_text(top.load, recall.task)}: " if top.load else ""
    title = titled(f"How far back each layout recalls {of.removesuffix(': ')}".strip(), recall.variant)
    last = recall.at(top)
    text = f"Accuracy at {top.text(recall.task)}: "
    text += "; ".join(f"{r.layout} {r.shown}" for r in rows_of(texts(last))) + "."
    text += "".join(f" {r.layout} at {r.length:,} tokens: {r.cause}." for r in rows_of(broken))
    caption = f"{recall.noun} against the length of the context, at the greatest load of the verdict. "
    caption += "A cross: at that length the layout gave no answers, and why. Recent answers are left out. "
    caption += "Click a name to single out its curve, here and in every chart."
    subtitle = origin(recall, "dotted: chance")
    data = pd.concat([cell_data(cells), in_words(broken, {**_PLACE, "cause": "no answers"})], ignore_index=True)
    yield Figure(numbered("recall", number), title, caption, text, finish(chart, title, subtitle), data)


def _length_tips() -> list[alt.Tooltip]:
    return tooltips(*_TIPS, ("length", "length"), ("load", "load"))


def _shaded(trained: list[int], evaluated: list[int]) -> tuple[int, int] | None:
    """The trained range as far as the axis shows it: one octave left of what was evaluated, and to its end."""
    if not trained or not evaluated or trained[0] > evaluated[-1] or trained[-1] < evaluated[0] // 2:
        return None
    return max(trained[0], math.ceil(evaluated[0] / 2)), min(trained[-1], evaluated[-1])


def trained_text(recall: Recall) -> str:
    loads = f", {_range_text(recall.trained_loads)}" if recall.trained_loads else ""
    what = (" needles" if of_needles(recall.task) else " load") if loads else ""
    return f"trained: {_range_text(recall.trained_lengths)} tokens{loads}{what}"


def _break_marks(broken: pd.DataFrame, x: alt.X, y: alt.Y, style: Style) -> list[Any]:
    if not len(broken):
        return []
    base = alt.Chart(broken).encode(x=x, y=y, color=style.colour(), opacity=style.emphasis)
    lead = base.mark_rule(strokeDash=[1, 3], strokeWidth=1.5).encode(x=alongside(x, "from"), x2="length:Q")
    cross = base.mark_text(text="✕", fontSize=14, fontWeight="bold")
    return [lead, cross.encode(tooltip=tooltips(("cause", "no answers"), ("length", "length")))]


def _end_labels(cells: pd.DataFrame, broken: pd.DataFrame, style: Style, height: int) -> Any:
    """Names at the right end of the curves, moved apart where they would overlap."""
    ends = cells.loc[cells.groupby("layout", sort=False)["length"].idxmax()]
    pixels = spread([(1 - v) * height for v in ends["accuracy"].fillna(0)], gap=_LABEL, low=0, high=height)
    first = broken.sort_values("length").groupby("layout")[["length", "cause"]].first()
    reach = {r.Index: f"{r.cause} at {r.length:,}" for r in rows_of(first)}
    longest = cells["length"].max()
    at = ["" if r.length == longest else f" at {r.length:,}" for r in rows_of(ends)]
    ended = [reach.get(r.layout) or f"{formats.percent(r.accuracy)}{where}" for r, where in zip(rows_of(ends), at)]
    names = [f"{formats.shorten(layout, 32)}\u2002{said}" for layout, said in zip(ends["layout"], ended)]
    # the plot's own scale, so that one axis serves the curves and the labels
    ends = ends[["layout"]].assign(label=names, label_y=[1 - p / height for p in pixels])
    labels = alt.Chart(ends).mark_text(align="left", dx=14, fontSize=12, cursor="pointer")
    return labels.encode(
        x=alt.value(WIDTH), y="label_y:Q", text="label:N", color=style.colour(), opacity=style.emphasis
    )


def _lengths_at_loads(run: RunData, recall: Recall, number: int) -> Iterator[Figure]:
    top, style = recall.headline, Style(run.layouts, shown=recall.layouts)
    loads = _some(sorted(recall.cells["load"].unique()), top.load)
    cells = recall.where(passes=top.passes, memory=top.memory)
    cells = texts(cells[cells["load"].isin(loads)]).sort_values(["load", "length"])
    if len(loads) < 2 or cells["length"].nunique() < 2:
        return
    cells["panel"] = [load_text(load, recall.task) for load in cells["load"]]
    names = [load_text(load, recall.task) for load in loads]
    lengths = sorted(int(n) for n in cells["length"].unique())
    shaded = _shaded(recall.trained_lengths, lengths)
    x = lengths_axis(lengths, "Length (tokens)", least=shaded[0] if shaded else None)
    curves = style.curves(cells, x, share_axis("accuracy", recall.noun), _length_tips())
    band = _trained_band(*shaded, x, "length", "trained") if shaded else []
    chart = _faceted([*band, *curves], curves, cells, names, columns=2, width=PANEL, height=190)
    title = titled("Recall against length, at each load", recall.variant)
    caption = f"The models are the same in all panels, {trained_text(recall)}; only what they are asked differs. "
    caption += "Where a curve ends early there were no answers; the tables say why."
    text = at_the_end(cells, "length", "shown")
    chart, name = finish(chart, title, origin(recall)), numbered("recall-length", number)
    yield Figure(name, title, caption, text, chart, cell_data(cells))


# --- Load, passes, depth ---


def _loads_at_lengths(run: RunData, recall: Recall, number: int) -> Iterator[Figure]:
    top, style = recall.headline, Style(run.layouts, shown=recall.layouts)
    cells = recall.where(passes=top.passes, memory=top.memory)
    cells = cells[cells["length"] <= top.length]  # what only few layouts were asked is in the tables
    lengths = _some(sorted(cells["length"].unique()), top.length)
    cells = texts(cells[cells["length"].isin(lengths)]).sort_values(["length", "load"])
    loads = sorted(int(n) for n in cells["load"].unique())
    if len(loads) < 2:
        return
    cells["panel"] = [f"{n:,} tokens" for n in cells["length"]]
    names = [f"{n:,} tokens" for n in lengths]
    unit = "Load (needles in the context)" if of_needles(recall.task) else "Load"
    x = lengths_axis(loads, unit, field="load")
    curves = style.curves(cells, x, share_axis("accuracy", recall.noun), _length_tips())
    shaded = [n for n in recall.trained_loads if n <= loads[-1]]
    band = _trained_band(max(shaded[0], loads[0]), max(shaded[-1], loads[0]), x, "load", "trained") if shaded else []
    chart = _faceted([*band, *curves], curves, cells, names, columns=2, width=PANEL, height=170)
    title = titled("Recall against load, at each length", recall.variant)
    caption = "How much a layout holds. Shaded: the loads of the training."
    text = at_the_end(cells, "load", "shown", "needles" if of_needles(recall.task) else "to hold")
    chart, name = finish(chart, title, origin(recall)), numbered("recall-load", number)
    yield Figure(name, title, caption, text, chart, cell_data(cells))


def _faceted(
    layers: list[Any], curves: list[Any], cells: pd.DataFrame, names: list[str], columns: int, width: int, height: int
) -> Any:
    """Panels of curves, with marks of their own data in each."""
    for layer in curves:
        layer.data = alt.Undefined  # a facet hands its own data down
    facet = alt.Facet("panel:N", sort=names, title=None)
    return alt.layer(*layers, data=cells).properties(width=width, height=height).facet(facet, columns=columns)


def _some(values: list[int], always: int) -> list[int]:
    """At most so many of `values` as there may be panels, evenly spread, with `always` among them."""
    if len(values) <= _PANELS:
        return [int(v) for v in values]
    picked = {values[round(i * (len(values) - 1) / (_PANELS - 1))] for i in range(_PANELS)}
    return [int(v) for v in sorted({*sorted(picked)[: _PANELS - 1], always})]


def _passes(run: RunData, recall: Recall, number: int) -> Iterator[Figure]:
    cell, style = passes_cell(recall), Style(run.layouts, shown=recall.layouts)
    cells = texts(recall.where(length=cell.length, load=cell.load)).sort_values(["memory", "passes"])
    if cells["passes"].nunique() < 2:
        return
    cells["panel"] = [f"{memory.capitalize()} memory" for memory in cells["memory"]]
    names = list(dict.fromkeys(cells["panel"]))
    x = alt.X("passes:O", title="Passes over the context", axis=alt.Axis(labelAngle=0))
    curves = style.curves(cells, x, share_axis("accuracy", recall.noun), tooltips(*_TIPS, ("passes", "passes")))
    width = WIDTH + 90 if len(names) == 1 else PANEL
    chart = panels(curves, cells, names, columns=2, width=width, height=220)
    where = Cell(cell.length, cell.load, 1, "fresh").text(recall.task)
    title = titled(f"Recall against passes: {where}", recall.variant)
    caption = "How much reading the context again helps, and whether a memory that was kept from sequence to sequence "
    caption += "still works. Fresh: each sequence starts with an empty memory."
    text = "; ".join(f"{r.layout}, {r.memory} memory, {r.passes} passes: {r.shown}" for r in rows_of(cells)) + "."
    chart, name = finish(chart, title, origin(recall)), numbered("recall-passes", number)
    yield Figure(name, title, caption, text, chart, cell_data(cells))


# --- State ---


def family(layout: str) -> tuple[str, str]:
    """`FwPKM · 1,024 slots` -> (`FwPKM`, `1,024 slots`); a layout of one size is a family of its own."""
    name, _, member = layout.partition(" · ")
    return name, member


def _by_state(run: RunData, recall: Recall, number: int) -> Iterator[Figure]:
    top = recall.headline
    points = recall.at(top)
    points = texts(points[points["state_bytes"] > 0])
    if not len(points):
        return
    points["full"] = points["layout"]
    points["layout"] = [family(name)[0] for name in points["full"]]
    points = points.sort_values("state_bytes", kind="stable")
    style = Style(list(dict.fromkeys(family(name)[0] for name in run.layouts)), legend=None)
    width, height = WIDTH + 60, HEIGHT + 20
    low, high = points["state_bytes"].min() / 2, points["state_bytes"].max() * 2
    x = alt.X(
        "state_bytes:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        title=f"State of one sequence after {formats.whole(top.length)} tokens (bytes)",
        axis=alt.Axis(labelExpr=BYTES, values=round_values(low, high)),
    )
    y = share_axis("accuracy", recall.noun)
    base = alt.Chart(points).encode(x=x, color=style.colour(), opacity=style.emphasis)
    layers = [
        base.mark_line(strokeWidth=1.5).encode(y=y, strokeDash=style.dash()),
        base.mark_rule(strokeWidth=1.5).encode(y=alongside(y, "low"), y2="high:Q"),
        base.mark_point(filled=True, size=90, cursor="pointer").encode(
            y=y, shape=style.shape(), tooltip=[alt.Tooltip("full:N", title="layout"), *tooltips(*_TIPS)[1:]]
        ),
        *_point_labels(points, style, x, y, low, high, width, height),
    ]
    chart = alt.layer(*layers).properties(width=width, height=height)
    title = titled(f"Recall against state bytes: {top.text(recall.task)}", recall.variant)
    caption = "What an answer costs in memory: up and to the left is better. A line joins the sizes of one family."
    text = "; ".join(f"{r.full} {r.shown} with {r.state}" for r in rows_of(points)) + "."
    broken = [f"{name} ({cause})" for (name, length), cause in recall.failed.items() if length == top.length]
    without = f"no answers at this length: {', '.join(broken)}"
    subtitle = [*origin(recall), *(broken_lines(without, 96) if broken else [])]
    data = cell_data(points.assign(layout=points["full"]))
    yield Figure(numbered("recall-state", number), title, caption, text, finish(chart, title, subtitle), data)


def _point_labels(
    points: pd.DataFrame, style: Style, x: alt.X, y: alt.Y, low: float, high: float, width: int, height: int
) -> Iterator[Any]:
    """The name beside each point; of a family the whole name at its largest member, the sizes at the others."""
    largest = set(points.groupby("layout")["state_bytes"].idxmax())
    names = []
    for index, r in zip(points.index, rows_of(points)):
        name, member = family(r.full)
        names.append(formats.shorten(r.full if index in largest or not member else member, 36))
    places = [
        (math.log(r.state_bytes / low) / math.log(high / low) * width, (1 - r.accuracy) * height)
        for r in rows_of(points)
    ]
    families: dict[str, list[tuple[float, float]]] = {}
    for name, place in zip(points["layout"], places):
        families.setdefault(name, []).append(place)
    lines = [line for members in families.values() for line in pairwise(members)]
    # the axis and its numbers
    lines += [((0.0, float(y)), (float(width), float(y))) for y in range(height, height + 120, 8)]
    beside = beside_points(places, names, [6.0] * len(names), width, lines)
    yield from names_beside(points, beside, names, style, x, y)
