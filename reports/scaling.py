"""Curves over the length on two logarithmic axes, with the exponent of each, and failures at the edge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import altair as alt
import pandas as pd

from .charts import Style, lengths_axis, tooltips, words
from .formats import mode_name
from .growth import Growth
from .labels import spread
from .statistics import rows_of
from .table import Table, in_brackets

_GAP = 13  # pixels from one exponent to the next
_INSET = 14  # pixels between the curves and the edges, where failures stand
_SIZE = (262, 190)  # pixels of one panel of several
Growths = Mapping[tuple[str, str], Growth]  # of panel and layout

GROWTH_NOTE = (
    "Least squares of the logarithm of the median over that of the length, on the upper half of the lengths, at least "
    "three. In brackets, the 95 % interval over new rounds at these lengths; it does not say whether a power law "
    "holds, nor what comes beyond them."
)


def places(failures: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Where a measure failed: a row for each layout, `panel` (the mode) and length, with the `cause`.

    failures: rows of `lines.failed_rows`. rank: from 0, of those that fell at the same place.
    """
    own = failures[failures["variant"] == variant]
    rows = [
        (layout, panel_of(mode), length, ", ".join(dict.fromkeys(s.replace("_", " ") for s in cases["status"])))
        for (layout, mode, length), cases in own.groupby(["layout", "mode", "length"], sort=False, dropna=False)
    ]
    failed = pd.DataFrame(rows, columns=["layout", "panel", "length", "cause"])
    return failed.assign(rank=failed.groupby(["panel", "length"]).cumcount())


def panel_of(mode: object) -> str:
    """The heading of the panel of a mode."""
    return (mode_name(mode) if isinstance(mode, str) else "").capitalize()


def scaling_chart(
    style: Style,
    frame: pd.DataFrame,
    y: alt.Y,
    tips: list[alt.Tooltip],
    *,
    failed: pd.DataFrame | None = None,
    edge: Literal["top", "bottom"] = "top",
    growths: Growths | None = None,
    wide: tuple[int, int] = (640, 280),
) -> Any:
    """Panels (column `panel`) of curves with bands `low..high` over `length`, each with a y axis of its own.

    failed: see `places`; crosses at the edge, which is that of the worse values. growths: exponents that stand at
    the ends of the curves. wide: size of the panel if there is only one.
    """
    failed = failed if failed is not None else pd.DataFrame(columns=["layout", "panel", "length", "cause", "rank"])
    names = list(dict.fromkeys([*frame["panel"], *failed["panel"]]))
    width, height = wide if len(names) == 1 else _SIZE
    x = lengths_axis([*frame["length"], *failed["length"]], "Length (tokens)", width=width - 40)
    layers = [layer.transform_filter("isValid(datum.low)") for layer in style.curves(frame, x, y, tips)]
    for layer in layers:
        layer.data = alt.Undefined  # the facet hands its own data down
    for rank in range(int(failed["rank"].max()) + 1 if len(failed) else 0):
        layers.append(_crosses(style, x, rank, edge, height))
    ends = _exponents(frame, y, growths or {}, height)
    if len(ends):
        text = alt.Chart().transform_filter("isValid(datum.exponent)").mark_text(align="left", dx=5, fontSize=11)
        text = text.encode(x=alt.value(width), y=_beside(y), text="exponent:N", color=style.colour())
        layers.append(text.encode(opacity=style.emphasis))
    whole = pd.concat([part for part in (frame, failed, ends) if len(part)], ignore_index=True)
    for column in [name for name in whole if not pd.api.types.is_numeric_dtype(whole[name])]:
        whole[column] = words(whole[column])
    chart = alt.layer(*layers, data=whole).properties(width=width, height=height)
    spacing = {"row": 16, "column": 52 if len(ends) else 18}
    chart = chart.facet(alt.Facet("panel:N", sort=names, title=None), columns=2, spacing=spacing)
    return chart.resolve_scale(y="independent").resolve_axis(x="independent")


def _crosses(style: Style, x: alt.X, rank: int, edge: str, height: int) -> Any:
    """The failures of one rank; those of the next stand further from the edge."""
    away = 1 + 13 * rank
    place = away if edge == "top" else height - away
    mark = style.within(alt.Chart()).transform_filter(f"isValid(datum.cause) && datum.rank === {rank}")
    tips = tooltips(("cause", "failed"), ("panel", "of"), ("length", "length"))
    cross = mark.mark_text(text="✕", fontSize=13, fontWeight="bold", baseline="middle")
    return cross.encode(x=x, y=alt.value(place), color=style.colour(), opacity=style.emphasis, tooltip=tips)


def _exponents(frame: pd.DataFrame, y: alt.Y, growths: Growths, height: int) -> pd.DataFrame:
    """What stands at the right of each panel, moved apart where it would overlap; nothing where there is no room."""
    value, rows = str(y.shorthand).removesuffix(":Q"), []
    for panel, own in frame.groupby("panel", sort=False):
        last = own.sort_values("length").groupby("layout", sort=False)[value].last().astype(float).to_dict()
        known = {str(name): growths[str(panel), str(name)] for name in last if (str(panel), name) in growths}
        if len(known) * _GAP > height:
            continue
        low, high = math.log(own["low"].min()), math.log(own["high"].max())
        room, scale = height - 2 * _INSET, (high - low) or 1.0
        wanted = [_INSET + (high - math.log(last[name])) / scale * room for name in known]
        pixels = spread(wanted, gap=_GAP, low=0, high=height)
        for name, pixel in zip(known, pixels):
            # back into the units of the axis, since every panel has its own
            beside = math.exp(high - (pixel - _INSET) / room * scale)
            rows.append({"panel": panel, "layout": name, "beside": beside, "exponent": _power(known[name])})
    return pd.DataFrame(rows, columns=["panel", "layout", "beside", "exponent"])


def _power(growth: Growth) -> str:
    return f"n^{round(growth.exponent, 2) + 0.0:.2f}"


def _beside(y: alt.Y) -> alt.Y:
    other = y.copy()
    other.shorthand = "beside:Q"
    return other


def growth_table(name: str, what: str, growths: Growths, variant: object = "") -> Iterator[Table]:
    """Layouts down, panels across: how `what` grows, and over which lengths that was fitted."""
    panels = list(dict.fromkeys(panel for panel, _ in growths))
    layouts = list(dict.fromkeys(layout for _, layout in growths))
    cells = {key: _fitted(growth) for key, growth in growths.items()}
    rows = [[layout, *(cells.get((panel, layout), "–") for panel in panels)] for layout in layouts]
    title = f"How {what} grows with the length{in_brackets(variant)}"
    if rows:
        yield Table(name, title, ["Layout", *panels], rows, GROWTH_NOTE)


def _fitted(growth: Growth) -> str:
    return f"{growth.text}, {growth.lengths[0]:,} to {growth.lengths[-1]:,}"


def growth_text(growths: Growths) -> str:
    """`Forward pass: softmax length^1.90, linear length^1.01.`"""
    said = []
    for panel in dict.fromkeys(panel for panel, _ in growths):
        own = [f"{layout} {growth.text}" for (where, layout), growth in growths.items() if where == panel]
        said.append(f"{panel}: {', '.join(own)}.")
    return " ".join(said)


def beside_failures(failed: pd.DataFrame) -> str:
    """What a caption says of crosses."""
    if not len(failed):
        return ""
    named = "; ".join(f"{r.layout}, {r.panel.lower()}, {r.length:,} tokens: {r.cause}" for r in rows_of(failed))
    return f" ✕ at the edge: failed there ({named})."
