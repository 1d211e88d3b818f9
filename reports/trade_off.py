"""Recall against speed: the trade-off plane."""

from __future__ import annotations

import math
from collections.abc import Iterator

import altair as alt
import pandas as pd

from . import formats
from .charts import (
    BYTES,
    COUNT,
    HEIGHT,
    WIDTH,
    Figure,
    Style,
    alongside,
    finish,
    in_words,
    share_axis,
    tooltips,
)
from .finding import common_length
from .formats import mode_name
from .labels import beside_points
from .recall import asked
from .recall_figures import names_beside
from .statistics import Interval, pool_speed, rows_of
from .tables import RunData

_BUBBLES = (60, 1100)  # square pixels of the smallest and the largest bubble


def trade_off_table(run: RunData) -> tuple[pd.DataFrame, str, str, int]:
    """Recall at the cell of the verdict beside speed at its longest common length; also the cell, mode and length.

    Speed is that of the training step, or of the forward pass where no training step was measured; of one kind of
    machine, which the mode then names.
    """
    recall, speed = next(asked(run), None), run["speed"]
    if recall is None or not len(speed):
        return pd.DataFrame(), "", "", 0
    modes = {mode_name(m): m for m in speed["mode"].unique()}
    mode = next((name for name in ("training step", "forward pass") if name in modes), next(iter(modes)))
    speed = speed[speed["mode"] == modes[mode]]
    variant = _most_layouts(run, speed)
    speed = speed[speed["variant"] == variant]
    mode += f" on {run.places[variant].kind}" if variant in run.places else ""
    timed = common_length(speed)
    rates = pool_speed(speed[speed["length"] == timed], ["layout"]).rename(columns={"low": "slow", "high": "fast"})
    accuracy = recall.at(recall.headline).drop(columns="backends")
    table = accuracy.merge(rates.drop(columns=["seeds", "rounds"]), on="layout")
    return table, recall.headline.text(recall.task), mode, timed


def _most_layouts(run: RunData, speed: pd.DataFrame) -> str:
    """The first variant; where that was timed on several kinds of machines, on the one that timed most layouts."""
    first = str(speed["variant"].iloc[0])
    counts = speed.groupby("variant", sort=False)["layout"].nunique()
    plain = run.places[first].variant if first in run.places else None
    same = [name for name in counts.index if name in run.places and run.places[name].variant == plain]
    return max(same, key=counts.__getitem__, default=first)


def trade_off(run: RunData) -> Iterator[Figure]:
    table, cell, mode, timed = trade_off_table(run)
    if not len(table):
        return
    recalled = next(asked(run)).layouts
    style = Style(run.layouts, legend=None)
    table["shown"] = [formats.percent_interval(Interval(r.accuracy, r.low, r.high)) for r in rows_of(table)]
    table["speed"] = [formats.rate_interval(Interval(r.tokens_per_second, r.slow, r.fast)) for r in rows_of(table)]
    table["state"] = table["state_bytes"].map(formats.bytes_)
    low, high = table["slow"].min() / 1.35, table["fast"].max() * 1.35
    width, height = WIDTH + 60, HEIGHT + 20
    points = [
        (math.log(r.tokens_per_second / low) / math.log(high / low) * width, (1 - r.accuracy) * height)
        for r in rows_of(table)
    ]
    names = [formats.shorten(name, 32) for name in table["layout"]]
    x = alt.X(
        "tokens_per_second:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        title=f"Tokens per second, {mode} at {formats.whole(timed)} tokens",
        axis=alt.Axis(labelExpr=COUNT, tickCount=6),
    )
    y = share_axis("accuracy", f"Recalled: {cell}")
    shares = (table["state_bytes"].astype(float) / table["state_bytes"].max()).fillna(0)
    radii = [math.sqrt((_BUBBLES[0] + (_BUBBLES[1] - _BUBBLES[0]) * math.sqrt(share)) / math.pi) for share in shares]
    extremes = sorted(set(table["state_bytes"].dropna().agg(["min", "max"]).dropna()))
    size = alt.Size(
        "state_bytes:Q",
        scale=alt.Scale(type="sqrt", range=list(_BUBBLES)),
        title="State of one sequence",
        legend=alt.Legend(orient="bottom", labelExpr=BYTES, symbolType="circle", values=extremes),
    )
    base = alt.Chart(table).encode(color=style.colour())
    layers = [
        base.mark_rule().encode(x=x, y=alongside(y, "low"), y2="high:Q", opacity=style.emphasis),
        base.mark_rule().encode(x=alongside(x, "slow"), x2="fast:Q", y=y, opacity=style.emphasis),
        base.mark_point(filled=True, cursor="pointer").encode(
            x=x,
            y=y,
            size=size,
            opacity=style.opacity(0.75),
            tooltip=tooltips(("shown", "accuracy [95 %]"), ("speed", "speed [quartiles]"), ("state", "state")),
        ),
    ]
    layers += names_beside(table, beside_points(points, names, radii, width), names, style, x, y)
    chart = alt.layer(*layers).properties(width=width, height=height)
    title = "Recall against speed"
    caption = "Bubble: bytes of the state of one sequence. Untaught layouts have none. "
    caption += "Bars: 95 % interval of the recall, quartiles of the speed."
    left = len({*recalled} - {*table["layout"]}) if run.places else 0
    caption += f" {left} layouts that were asked were not timed on this kind of machine." if left else ""
    text = "; ".join(f"{r.layout} {r.shown} at {r.speed}, state {r.state}" for r in rows_of(table)) + "."
    named = {"layout": "layout", "accuracy": "accuracy", "low": "low", "high": "high"}
    named |= {"tokens_per_second": "tokens per second", "slow": "first quartile", "fast": "third quartile"}
    data = in_words(table, {**named, "state_bytes": "state bytes"})
    finished = finish(chart, title, "up and to the right is better; bubble: state bytes")
    yield Figure("trade-off", title, caption, text, finished, data)
