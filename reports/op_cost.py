"""What a token costs in every layout: a row each, a mark for everything that ran in turn with it."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from . import formats
from .charts import MUTED, SECONDS, WIDTH, Figure, Style, alongside, finish, in_words, round_values, titled, tooltips
from .formats import mode_name
from .statistics import rows_of
from .table import numbered
from .tables import RunData

_ROW = 17  # pixels of a layout
_SAID = 30  # numbers in the text alternative
_SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left"]


def cost_figures(run: RunData, times: pd.DataFrame, name: str) -> Iterator[Figure]:
    """One for each mode in which several layouts were timed. times: the tidy table of a measure of things in turn."""
    number = 0
    for (variant, mode), rows in times.groupby(["variant", "mode"], sort=False):
        if rows["layout"].nunique() > 1:
            yield _cost_figure(run, rows, str(variant), str(mode), numbered(name, number))
            number += 1


def _cost_figure(run: RunData, rows: pd.DataFrame, variant: str, mode: str, name: str) -> Figure:
    frame = pd.DataFrame(
        {
            "layout": rows["layout"],
            "contender": [f"{r.backend}, {formats.whole(r.tokens)} tokens" for r in rows_of(rows)],
            "tokens": rows["tokens"],
            "cost": rows["seconds"] / rows["units"],
            "low": rows["seconds_low"] / rows["units"],
            "high": rows["seconds_high"] / rows["units"],
            "rounds": rows["rounds"],
        }
    )
    frame["shown"] = [" to ".join(map(formats.seconds, (r.low, r.high))) for r in rows_of(frame)]
    frame["middle"] = frame["cost"].map(formats.seconds)
    layouts = [name for name in run.layouts if name in set(frame["layout"])]
    contenders = list(dict.fromkeys(frame["contender"]))
    style = Style(run.layouts, legend=None)
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = alt.Axis(labelExpr=SECONDS, values=round_values(frame["low"].min(), frame["high"].max()))
    x = alt.X("cost:Q", scale=scale, title="Seconds a token", axis=axis)
    y = alt.Y("layout:N", sort=layouts, title=None, axis=alt.Axis(labelLimit=240, grid=True, ticks=False))
    shapes = alt.Scale(domain=contenders, range=[_SHAPES[i % len(_SHAPES)] for i in range(len(contenders))])
    legend = alt.Legend(orient="bottom", title=None, columns=3, symbolFillColor=MUTED, symbolStrokeWidth=0)
    legend.labelLimit = 260
    base = alt.Chart(frame).encode(y=y, color=style.colour(), opacity=style.emphasis)
    tips = tooltips(("contender", "what ran"), ("middle", "a token"), ("shown", "quartiles"), ("rounds", "rounds"))
    point = base.mark_point(filled=True, size=52).encode(
        x=x, shape=alt.Shape("contender:N", scale=shapes, legend=legend), tooltip=tips
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(x=alongside(x, "low"), x2="high:Q")
    chart = alt.layer(bars, point).properties(width=WIDTH - 60, height=_ROW * len(layouts))
    title = titled(f"What a token costs, {mode_name(mode)}", variant)
    caption = "Median over the rounds of everything that ran in turn in one process, bars from the first to the third "
    caption += "quartile; logarithmic axis. "
    caption += "Tokens: those that were read before." if mode == "decode" else "Tokens: those of a call."
    said = [f"{r.layout}, {r.contender}: {r.middle}" for r in rows_of(frame.sort_values("cost", kind="stable"))]
    rest = len(said) - _SAID
    text = f"From the cheapest: {'; '.join(said[:_SAID])}{f'; and {rest} more in the table' if rest > 0 else ''}."
    named = {"layout": "layout", "contender": "what ran", "tokens": "tokens", "cost": "seconds a token"}
    named |= {"low": "first quartile", "high": "third quartile", "rounds": "rounds"}
    data = in_words(frame, named)
    finished = finish(chart, title, "seconds a token, median and quartiles; further left is faster")
    return Figure(name, title, caption, text, finished, data)
