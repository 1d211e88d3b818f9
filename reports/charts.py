"""What all charts share: the look of a layout, curves with bands, panels, axes with units, the files of a figure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import altair as alt
import pandas as pd
import vl_convert

VEGALITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])

# Okabe and Ito's colours for all kinds of colour vision, those that vanish on white replaced; with a shape and a dash
# of its own every layout is told apart in grey as well. The second row is for a dark page.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#B5539C", "#C98500", "#2E96D0", "#4D4D4D", "#8A6D1F"]
_COLOURS += ["#5B5BD6", "#882255", "#117733", "#00979D"]
_ON_DARK = ["#4FA8E8", "#FF8A3D", "#2FC79A", "#DE8AC8", "#F2B632", "#7CCBF5", "#C4C9CE", "#C7A75A"]
_ON_DARK += ["#9A9AF5", "#E07AA8", "#5FC77A", "#3FC9CF"]
# Vega's names for shapes, with the same drawn in a square from -6 to 6.
_SHAPES = {
    "circle": "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",
    "square": "M-4.5-4.5h9v9h-9Z",
    "triangle-up": "M0-5L5.5 5h-11Z",
    "diamond": "M0-6L4.5 0L0 6L-4.5 0Z",
    "triangle-down": "M0 5L5.5-5h-11Z",
    "cross": "M-1.8-5.5h3.6v3.7h3.7v3.6h-3.7v3.7h-3.6v-3.7h-3.7v-3.6h3.7Z",
    "triangle-right": "M5 0L-5 5.5v-11Z",
}
_DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [1, 0], [5, 2], [3, 4]]
WIDTH, HEIGHT = 440, 300  # pixels of a chart; with its labels two stand side by side on a page
PANEL = 250  # width of one of several panels
PERCENT = "format(100 * datum.value, 'd') + ' %'"
BYTES = "replace(format(datum.value, '.3~s'), regexp('([kMGTP])?$'), ' $1B')"
COUNT = "replace(format(datum.value, '.3~s'), regexp('([kMGTP])$'), ' $1')"
SECONDS = "replace(format(datum.value, '.3~s'), regexp('([mµn])?$'), ' $1s')"

# What the page sets in every chart at once. chosen: the layouts that stand out, none for all; hidden: those that are
# not shown; longest: the greatest length that is shown, 0 for all; dark: whether the page is.
PARAMETERS = [
    alt.param(name="chosen", value=[]),
    alt.param(name="hidden", value=[]),
    alt.param(name="longest", value=0),
    alt.param(name="dark", value=False),
]
_CHOSEN = "!length(chosen) || indexof(chosen, {0}) >= 0"
_HIDDEN = "indexof(hidden, {0}) >= 0"
_WITHIN = "!longest || !isValid(datum.length) || datum.length <= longest"


def on_page(light: str, dark: str) -> alt.ExprRef:
    """A colour, one for the light page and one for the dark."""
    return alt.ExprRef(f"dark ? '{dark}' : '{light}'")


INK, MUTED, LINES = on_page("#202124", "#e6e8eb"), on_page("#5f6368", "#a3acb6"), on_page("#9aa0a6", "#6b7580")


@cache
def drawing_code() -> str:
    """JavaScript with all that draws charts in a browser, as `vegaEmbed`; takes two seconds the first time."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGALITE)


def json_in_script(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


@dataclass(frozen=True)
class Figure:
    """A chart and what is said of it. name: stem of its files; alt: for who cannot see.

    data: what the chart shows, with the headings of its CSV; None: the largest data set of the chart.
    """

    name: str
    title: str
    caption: str
    alt: str
    chart: Finished
    data: pd.DataFrame | None = None

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification with its data."""
        with alt.data_transformers.enable("default", max_rows=None):
            return {**self.chart.to_dict(), "description": f"{self.title}. {self.alt}"}

    @property
    def spec_json(self) -> str:
        """`spec` as JSON that may stand inside a script element."""
        return json_in_script(self.spec)

    def csv(self) -> str:
        """What the chart shows, as CSV."""
        data = self.data
        if data is None:
            data = pd.DataFrame(max(self.spec.get("datasets", {}).values(), key=len, default=[]))
        return data.convert_dtypes().to_csv(index=False, lineterminator="\n", float_format="%.10g")

    @cached_property
    def svg(self) -> str:
        return vl_convert.vegalite_to_svg(self.spec, vl_version=VEGALITE)

    @property
    def width(self) -> int:
        """In pixels, as it is drawn."""
        found = re.search(r'<svg[^>]* width="([\d.]+)"', self.svg)
        assert found, "vl-convert writes the width of a chart"
        return round(float(found[1]))

    @property
    def png(self) -> bytes:
        return vl_convert.svg_to_png(self.svg, scale=2)  # the bytes that the specification gives, drawn once

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.svg").write_text(self.svg, encoding="utf-8")
        (folder / f"{self.name}.png").write_bytes(self.png)


@dataclass(frozen=True)
class Look:
    """How a layout is drawn in every chart: its colour on a light and on a dark page, its marker as an SVG path."""

    layout: str
    light: str
    dark: str
    path: str


def looks(layouts: list[str]) -> list[Look]:
    """The looks of all layouts of a run, in its order."""
    paths = list(_SHAPES.values())
    return [
        Look(layout, _COLOURS[i % len(_COLOURS)], _ON_DARK[i % len(_ON_DARK)], paths[i % len(paths)])
        for i, layout in enumerate(layouts)
    ]


class Style:
    """The look of every layout, the same in all charts of a report.

    legend: `points` or `lines`, whichever the chart shows; None if direct labels stand in for it. shown: the layouts
    in the legend, default all.
    """

    def __init__(
        self,
        layouts: list[str],
        legend: Literal["points", "lines"] | None = "points",
        shown: list[str] | None = None,
    ) -> None:
        self.layouts = layouts
        # the outline of a point would be dashed like the line
        width = 0 if legend == "points" else 2
        seen = alt.ExprRef(f"{_HIDDEN} ? 0.1 : {_CHOSEN} ? 1 : 0.3".format("datum.value"))
        drawn = alt.Legend(orient="bottom", columns=4, labelLimit=200, symbolLimit=1000, symbolStrokeWidth=width)
        drawn.symbolOpacity = drawn.labelOpacity = seen
        drawn.values = shown or layouts
        self.legend = drawn if legend else None
        self.emphasis = self.opacity(1.0)
        self.faint = self.opacity(0.14, 0.02)

    @staticmethod
    def opacity(full: float, faded: float = 0.12) -> Any:
        """The opacity of a mark: `faded` while other layouts are chosen, 0 while its own is hidden.

        Its layout is the field `full` of its data, or else `layout`, by which it has its colour.
        """
        hidden, chosen = (test.format("(datum.full || datum.layout)") for test in (_HIDDEN, _CHOSEN))
        shown = alt.when(hidden).then(alt.value(0)).when(chosen).then(alt.value(full))
        return shown.otherwise(alt.value(faded))

    @staticmethod
    def within(chart: alt.Chart) -> alt.Chart:
        """`chart` without what is longer than the page shows; data without a `length` stay."""
        return chart.transform_filter(_WITHIN)

    def _pick(self, values: list) -> list:
        return [values[i % len(values)] for i in range(len(self.layouts))]

    def colour(self) -> alt.Color:
        pairs = [on_page(*pair) for pair in zip(_COLOURS, _ON_DARK)]
        scale = alt.Scale(domain=self.layouts, range=self._pick(pairs))
        return alt.Color("layout:N", scale=scale, title=None, legend=self.legend)

    def shape(self) -> alt.Shape:
        scale = alt.Scale(domain=self.layouts, range=self._pick(list(_SHAPES)))
        return alt.Shape("layout:N", scale=scale, title=None, legend=self.legend)

    def dash(self) -> alt.StrokeDash:
        scale = alt.Scale(domain=self.layouts, range=self._pick(_DASHES))
        return alt.StrokeDash("layout:N", scale=scale, title=None, legend=self.legend)

    def curves(self, frame: pd.DataFrame, x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip]) -> list[Any]:
        """Line, points and band of every layout; fields `low` and `high` bound the band."""
        base = self.within(alt.Chart(frame)).encode(x=x, color=self.colour())
        bounds = {"y": alongside(y, "low"), "y2": "high:Q"}
        band = base.mark_area().encode(**bounds, opacity=self.faint)
        whisker = base.mark_rule(strokeWidth=1.5).encode(**bounds, opacity=self.emphasis)
        line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=self.dash(), opacity=self.emphasis)
        point = base.mark_point(filled=True, size=55).encode(
            y=y, shape=self.shape(), opacity=self.emphasis, tooltip=tooltip
        )
        return [band, whisker, line, point]


@dataclass(frozen=True)
class Finished:
    """A chart with its title, and all that is the same for every chart."""

    chart: Any
    title: alt.TitleParams

    def to_dict(self) -> dict[str, Any]:
        """The Vega-Lite specification."""
        # whether it is one is for tests to say: to look takes as long as all else
        spec, same = self.chart.to_dict(validate=False), _same_for_all()
        return {**spec, **same, "params": [*spec.get("params", []), *same["params"]], "title": self.title.to_dict()}


def finish(chart: Any, title: str, subtitle: str | list[str]) -> Finished:
    """Title and theme, and what the page sets in every chart."""
    return Finished(chart, alt.TitleParams(title, subtitle=subtitle, anchor="start", frame="bounds", offset=14))


@cache
def _same_for_all() -> dict[str, Any]:
    """Theme and parameters, as they stand in a specification; to build them into each chart copies all of it."""
    font = "Helvetica, Arial, sans-serif"
    empty = (
        alt.Chart()
        .mark_point()
        .add_params(*PARAMETERS)
        .properties(
            background=on_page("white", "#1d2126"),
            padding=12,
            autosize=alt.AutoSizeParams(type="pad"),
        )
        .configure(font=font, aria=False)  # of the marks: a figure is told in words, and by its table
        .configure_view(stroke=None)
        .configure_axis(
            gridColor=on_page("#ececec", "#31383f"),
            domainColor=LINES,
            tickColor=LINES,
            labelColor=on_page("#3c4043", "#c5cbd2"),
            titleColor=on_page("#3c4043", "#c5cbd2"),
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=12,
            titlePadding=8,
        )
        .configure_title(fontSize=16, subtitleFontSize=12, subtitleColor=MUTED, subtitlePadding=5, color=INK)
        .configure_legend(
            labelColor=on_page("#3c4043", "#c5cbd2"),
            titleColor=INK,
            labelFontSize=12,
            titleFontSize=12,
            symbolSize=80,
            rowPadding=4,
        )
        .configure_header(labelFontSize=13, labelFontWeight="bold", labelAnchor="start", labelColor=INK, title=None)
    ).to_dict()
    return {name: empty[name] for name in ("background", "padding", "autosize", "config", "params")}


def alongside(channel: Any, field: str) -> Any:
    """The same channel, axis and scale, for another field."""
    other = channel.copy()
    other.shorthand = f"{field}:Q"
    return other


def lengths_axis(
    lengths: list[int],
    title: str = "Length of the context (tokens)",
    field: str = "length",
    least: int | None = None,
    width: int = WIDTH,
) -> alt.X:
    """A logarithmic axis of lengths or loads, with a tick at each.

    least: where it starts, if left of the first. width: of the plot in pixels; labels too long for it stand aslant.
    """
    values = sorted({int(n) for n in lengths})
    crowded = len(values) > 8 or sum(7 * len(f"{n:,}") for n in values) > width
    axis = alt.Axis(values=values, format=",d", labelAngle=-40 if crowded else 0, grid=True)
    domain: list[float] = [values[0], values[-1]] if len(values) > 1 else [values[0] / 2, values[0] * 2]
    domain[0] = min(domain[0], least or domain[0])
    return alt.X(f"{field}:Q", scale=alt.Scale(type="log", base=2, domain=domain, nice=False), axis=axis, title=title)


def share_axis(field: str, title: str) -> alt.Y:
    scale = alt.Scale(domain=[0, 1], clamp=True)
    return alt.Y(
        f"{field}:Q",
        scale=scale,
        axis=alt.Axis(labelExpr=PERCENT, tickCount=5),
        title=title,
    )


def logarithmic_axis(field: str, labels: str, title: str) -> alt.Y:
    axis = alt.Axis(labelExpr=labels, tickCount=5, labelFlush=True)
    return alt.Y(f"{field}:Q", scale=alt.Scale(type="log", nice=False, padding=14), axis=axis, title=title)


def round_values(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten in `low..high`, and multiples of them if there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low
    steps = range(1, 10) if wide < 10 else (1, 2, 5) if wide < 5000 else (1,)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def tooltips(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip("layout:N", title="layout"), *(alt.Tooltip(f"{f}:N", title=t) for f, t in fields)]


def in_words(frame: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The columns of `frame` that `names` has, under the headings that it gives them, for the CSV of a figure."""
    return frame[list(names)].rename(columns=names)


def words(column: Iterable[Any]) -> pd.Series:
    """A column of words for a chart, nothing where there is none: JSON has no nan."""
    return pd.Series([text if isinstance(text, str) else None for text in column], dtype=object)


def at_the_end(frame: pd.DataFrame, x: str, said: str, unit: str = "tokens") -> str:
    """The text alternative of panels: of each (column `panel`), what the layouts reach at the greatest `x` they have.

    said: the column with their numbers as text.
    """
    parts = []
    for panel, own in frame.groupby("panel", sort=False):
        last = own.sort_values(x, kind="stable").drop_duplicates("layout", keep="last").sort_index()
        end = last[x].max()
        where = ["" if n == end else f" at {n:,}" for n in last[x]]
        numbers = [f"{layout} {text}{at}" for layout, text, at in zip(last["layout"], last[said], where)]
        parts.append(f"{panel}, {end:,} {unit}: {'; '.join(numbers)}.".removeprefix(", "))
    return " ".join(parts)


def titled(title: str, variant: str) -> str:
    return f"{title} ({variant})" if variant else title


def panels(
    curves: list[Any], frame: pd.DataFrame, names: list[str], columns: int, width: int, height: int, free: bool = False
) -> Any:
    """One panel for each value of the column `panel`; free: each with a y axis of its own."""
    for layer in curves:
        layer.data = alt.Undefined  # a facet hands its own data down
    facet = alt.Facet("panel:N", sort=names, title=None)
    chart = alt.layer(*curves, data=frame).properties(width=width, height=height).facet(facet, columns=columns)
    return chart.resolve_scale(y="independent") if free else chart
