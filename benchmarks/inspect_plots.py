"""The charts of `mixerzoo inspect`: gates along the text, and how unevenly slots are used."""

from __future__ import annotations

from pathlib import Path
from statistics import quantiles
from typing import Any

import altair as alt

WIDTH, HEIGHT = 640, 160
COLOUR = "#0072B2"
BINS = 320  # points along the text


def save_charts(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what `inspect` found as SVG files in `folder`; returns them."""
    charts = {"slots": slots_chart(found)}
    if any(layer["gates"] is not None for layer in found["layers"]):
        charts["gates"] = gates_chart(found)
    paths = []
    for name, chart in sorted(charts.items()):
        paths.append(folder / f"{name}.svg")
        with alt.data_transformers.enable("default", max_rows=None):
            chart.save(str(paths[-1]))
    return paths


def gates_chart(found: dict[str, Any]) -> Any:
    """Mean gate, with the middle half as a band, along the text, one panel a layer."""
    points = [
        {"layer": layer["name"], **point}
        for layer in found["layers"]
        if layer["gates"] is not None
        for point in gate_points(layer["gates"])
    ]
    x = alt.X("token:Q", title="Token", scale=alt.Scale(domain=[0, found["tokens"]], nice=False))
    scale = alt.Scale(domain=[0, 1])
    base = alt.Chart(alt.Data(values=points)).encode(x=x).properties(width=WIDTH, height=HEIGHT)
    band = base.mark_area(color=COLOUR, opacity=0.2).encode(y=alt.Y("low:Q", scale=scale, title="Gate"), y2="high:Q")
    line = base.mark_line(color=COLOUR, strokeWidth=1.5).encode(y=alt.Y("mean:Q", scale=scale, title="Gate"))
    return _panels(band + line, points, "How much of what it retrieves each layer lets through", "mean and middle half")


def gate_points(gates: list[float]) -> list[dict[str, float]]:
    """The mean and the first and third quartile of at most `BINS` stretches of equal length."""
    size = -(-len(gates) // BINS)
    points = []
    for start in range(0, len(gates), size):
        part = gates[start : start + size]
        low, _, high = quantiles(part, n=4, method="inclusive") if len(part) > 1 else [part[0]] * 3
        points.append({"token": start + (len(part) - 1) / 2, "mean": sum(part) / len(part), "low": low, "high": high})
    return points


def slots_chart(found: dict[str, Any]) -> Any:
    """A histogram of slots by how often they are accessed, in powers of two, one panel a layer."""
    bars = [
        {"layer": layer["name"], **bar} for layer in found["layers"] for bar in slot_bars(layer["slots_by_accesses"])
    ]
    order = alt.EncodingSortField("first", order="ascending")
    chart = (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(color=COLOUR)
        .encode(
            x=alt.X("accesses:N", sort=order, title="Accesses to the slot", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("slots:Q", title="Slots"),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return _panels(chart, bars, "How evenly the slots are used", "slots by the number of accesses to them, in reading")


def slot_bars(slots_by_accesses: list[list[int]]) -> list[dict[str, Any]]:
    """Numbers of slots with 0, 1, 2-3, 4-7, ... accesses."""
    bars: dict[int, int] = {}
    for accesses, slots in slots_by_accesses:
        bars[accesses.bit_length()] = bars.get(accesses.bit_length(), 0) + slots
    found = []
    for bits in range(max(bars) + 1):
        first, last = (1 << bits) >> 1, (1 << bits) - 1
        label = str(first) if first == last else f"{first:,}\N{EN DASH}{last:,}"
        found.append({"accesses": label, "first": first, "slots": bars.get(bits, 0)})
    return found


def _panels(chart: Any, values: list[dict[str, Any]], title: str, subtitle: str) -> Any:
    names = list(dict.fromkeys(value["layer"] for value in values))
    facet = alt.Facet("layer:N", sort=names, title=None, header=alt.Header(labelAnchor="start", labelFontWeight="bold"))
    return (
        chart.facet(facet, columns=1)
        .resolve_scale(y="independent")
        .properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start"), background="white", padding=12)
        .configure(font="Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
    )
