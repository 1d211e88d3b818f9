"""The charts. One Altair specification gives the interactive one on the page and, through vl-convert, SVG and PNG."""

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
    lengths_axis,
    logarithmic_axis,
    numbered,
    panels,
    share_axis,
    titled,
    tooltips,
)
from .finding import common_length
from .formats import mode_name
from .labels import beside_points
from .recall import asked
from .recall_figures import recall_figures
from .statistics import Interval, pool_perplexity, pool_speed, rows_of
from .tables import RunData
from .taught_tables import taught_figures

_BUBBLES = (60, 1100)  # square pixels of the smallest and the largest bubble


def figures(run: RunData) -> list[Figure]:
    """Every chart that the run has data for."""
    measured = (_speed, _peak_memory, _state, _trade_off, _perplexity, _training, _op_lengths)
    makers = (taught_figures, recall_figures, *measured)
    return [figure for make in makers for figure in make(run)]


# --- Speed and memory ---


def _speed(run: RunData) -> Iterator[Figure]:
    style = Style(run.layouts)
    for number, (variant, rows) in enumerate(run.speed.groupby("variant", sort=False)):
        pooled = pool_speed(rows, ["layout", "mode", "length"])
        pooled["panel"] = [mode_name(m).capitalize() for m in pooled["mode"]]
        rates = [Interval(r.tokens_per_second, r.low, r.high) for r in rows_of(pooled)]
        pooled["shown"] = [formats.rate_interval(i) for i in rates]
        pooled["time"] = [formats.seconds(s) for s in pooled["seconds"]]
        x = lengths_axis(pooled["length"].tolist(), "Length (tokens)")
        y = logarithmic_axis("tokens_per_second", COUNT, "Tokens per second")
        tips = tooltips(
            ("shown", "speed [quartiles]"), ("time", "time of a round"), ("rounds", "rounds"), ("length", "length")
        )
        names = list(dict.fromkeys(pooled["panel"]))
        chart = panels(style.curves(pooled, x, y, tips), pooled, names, columns=2, width=358, height=220, free=True)
        title = titled("Speed by length", str(variant))
        caption = "Median over the rounds, bands from the first to the third quartile; both axes logarithmic."
        text = f"Small multiples: {formats.listing(names)}; numbers in the tables."
        subtitle = "tokens per second, median and quartiles"
        yield Figure(numbered("speed", number), "speed", title, caption, text, finish(chart, title, subtitle))


def _peak_memory(run: RunData) -> Iterator[Figure]:
    style = Style(run.layouts)
    for number, (variant, rows) in enumerate(run.memory.groupby("variant", sort=False)):
        positive = rows[rows["peak_bytes"] > 0]
        if not len(positive):
            continue
        pooled = positive.groupby(["layout", "mode", "length"], sort=False, as_index=False)["peak_bytes"].median()
        pooled = pooled.assign(
            low=pooled["peak_bytes"], high=pooled["peak_bytes"], shown=pooled["peak_bytes"].map(formats.bytes_)
        )
        pooled["panel"] = [mode_name(m).capitalize() for m in pooled["mode"]]
        x = lengths_axis(pooled["length"].tolist(), "Length (tokens)")
        y = logarithmic_axis("peak_bytes", BYTES, "Peak bytes above the model")
        names = list(dict.fromkeys(pooled["panel"]))
        curves = style.curves(pooled, x, y, tooltips(("shown", "peak"), ("length", "length")))
        size = (WIDTH + 116, HEIGHT - 60) if len(names) == 1 else (358, 220)
        chart = panels(curves, pooled, names, columns=2, width=size[0], height=size[1], free=True)
        title = titled("Peak memory by length", str(variant))
        caption = "Peak of the memory allocated above the resident model; both axes logarithmic."
        caption += _left_out(len(rows) - len(positive))
        text = f"Small multiples: {formats.listing(names)}; numbers in the tables."
        yield Figure(
            numbered("memory", number), "memory", title, caption, text, finish(chart, title, "lower is better")
        )


def _state(run: RunData) -> Iterator[Figure]:
    positive = run.states[run.states["state_bytes"] > 0]
    if not len(positive):
        return
    style = Style(run.layouts)
    states = positive.assign(
        low=positive["state_bytes"], high=positive["state_bytes"], shown=positive["state_bytes"].map(formats.bytes_)
    )
    x = lengths_axis(states["length"].tolist(), "Tokens read")
    curves = style.curves(
        states,
        x,
        logarithmic_axis("state_bytes", BYTES, "State (bytes)"),
        tooltips(("shown", "state"), ("length", "tokens read")),
    )
    chart = alt.layer(*curves).properties(width=WIDTH + 116, height=HEIGHT - 60)
    title = "What a sequence has to keep"
    caption = "Bytes of the state of one sequence after so many tokens; both axes logarithmic."
    caption += _left_out(len(run.states) - len(positive))
    last = states[states["length"] == states["length"].max()]
    text = "At the longest length: " + "; ".join(f"{r.layout} {r.shown}" for r in rows_of(last)) + "."
    yield Figure(
        "state", "memory", title, caption, text, finish(chart, title, "state bytes of one sequence, lower is better")
    )


def _left_out(count: int) -> str:
    return f" {count} values of 0 bytes do not fit on a logarithmic axis and are left out." if count else ""


# --- Recall against speed ---


def trade_off_table(run: RunData) -> tuple[pd.DataFrame, str, str, int]:
    """Recall at the cell of the verdict beside speed at its longest common length; also the cell, mode and length.

    Speed is that of the training step, or of the forward pass where no training step was measured.
    """
    recall, speed = next(asked(run), None), run.speed
    if recall is None or not len(speed):
        return pd.DataFrame(), "", "", 0
    modes = {mode_name(m): m for m in speed["mode"].unique()}
    mode = next((name for name in ("training step", "forward pass") if name in modes), next(iter(modes)))
    speed = speed[speed["mode"] == modes[mode]]
    speed = speed[speed["variant"] == speed["variant"].iloc[0]]
    timed = common_length(speed)
    rates = pool_speed(speed[speed["length"] == timed], ["layout"]).rename(columns={"low": "slow", "high": "fast"})
    accuracy = recall.at(recall.headline).drop(columns="backends")
    table = accuracy.merge(rates.drop(columns=["seeds", "rounds"]), on="layout")
    return table, recall.headline.text(recall.task), mode, timed


def _trade_off(run: RunData) -> Iterator[Figure]:
    table, cell, mode, timed = trade_off_table(run)
    if not len(table):
        return
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
    for place, row, name in zip(beside_points(points, names, radii, width), table.to_dict("records"), names):
        label = alt.Chart(pd.DataFrame([{**row, "label": name}])).mark_text(
            dx=place.dx, dy=place.dy, align=place.align, fontSize=12
        )
        layers.append(label.encode(x=x, y=y, text="label:N", color=style.colour(), opacity=style.emphasis))
    chart = alt.layer(*layers).properties(width=width, height=height)
    title = "Recall against speed"
    caption = "Bubble: bytes of the state of one sequence. Untaught layouts have none. "
    caption += "Bars: 95 % interval of the recall, quartiles of the speed."
    text = "; ".join(f"{r.layout} {r.shown} at {r.speed}, state {r.state}" for r in rows_of(table)) + "."
    yield Figure(
        "trade-off",
        "trade-off",
        title,
        caption,
        text,
        finish(chart, title, "up and to the right is better; bubble: state bytes"),
    )


# --- Text and training ---


def _perplexity(run: RunData) -> Iterator[Figure]:
    style = Style(run.layouts)
    for number, (variant, rows) in enumerate(run.perplexity.groupby("variant", sort=False)):
        pooled = pool_perplexity(rows, ["layout", "start", "end"]).rename(
            columns={"seed_low": "low", "seed_high": "high"}
        )
        pooled = pooled.dropna(subset=["bits_per_byte"]).sort_values("end", kind="stable")
        pooled["shown"] = [f"{v:.3f}" for v in pooled["bits_per_byte"]]
        pooled["range"] = [f"{low:.3f} to {high:.3f}" for low, high in zip(pooled["low"], pooled["high"])]
        pooled["length"] = pooled["end"]
        x = lengths_axis(pooled["end"].tolist(), "Position in the text, up to (bytes)")
        y = alt.Y("bits_per_byte:Q", scale=alt.Scale(zero=False), title="Bits per byte")
        curves = style.curves(
            pooled,
            x,
            y,
            tooltips(("shown", "bits per byte"), ("range", "over seeds"), ("start", "from"), ("end", "to")),
        )
        chart = alt.layer(*curves).properties(width=WIDTH + 116, height=HEIGHT - 40)
        title = titled("Perplexity by position", str(variant))
        seeds = rows["seed"].nunique()
        subtitle = (
            "lower is better; one seed"
            if seeds == 1
            else f"lower is better; bands: least and greatest of {seeds} seeds"
        )
        caption = "Bits needed for each byte of real text, by how far into the text it stands: "
        caption += "whoever makes use of the context falls to the right."
        text = "Curves over the position; numbers in the tables."
        yield Figure(numbered("perplexity", number), "perplexity", title, caption, text, finish(chart, title, subtitle))


def _training(run: RunData) -> Iterator[Figure]:
    if not len(run.curves):
        return
    style = Style(run.layouts, legend="lines")
    curves = run.curves.dropna(subset=["loss"])
    curves = curves.assign(panel=[titled(m.capitalize(), v) for m, v in zip(curves["measure"], curves["variant"])])
    names = list(dict.fromkeys(curves["panel"]))
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="Training step"), y=alt.Y("loss:Q", title="Loss (nats)", axis=alt.Axis(labelFlush=True))
    )
    tips = tooltips(("seed", "seed"), ("step", "step"))
    line = base.mark_line(strokeWidth=1.5).encode(
        color=style.colour(),
        strokeDash=style.dash(),
        opacity=style.emphasis,
        detail="seed:N",
        tooltip=[*tips, alt.Tooltip("loss:Q", format=".3f")],
    )
    size = (WIDTH + 116, HEIGHT - 60) if len(names) == 1 else (358, 220)
    chart = panels([line], curves, names, columns=2, width=size[0], height=size[1], free=True)
    title, caption = (
        "Training curves",
        "Loss of the training batches in nats per scored token, one curve for each seed.",
    )
    yield Figure(
        "training",
        "training",
        title,
        caption,
        caption,
        finish(chart, title, "loss of the training batches, one curve for each seed"),
    )


# --- Op speed ---


def _op_lengths(run: RunData) -> Iterator[Figure]:
    """What a token costs at each length, where one case has timed several."""
    several = run.op_speed.groupby(["case", "backend", "mode"])["tokens"].transform("nunique") > 1
    for number, (variant, rows) in enumerate(run.op_speed[several].groupby("variant", sort=False)):
        costs = {
            name: 1e6 * rows[column] / rows["units"]
            for name, column in (("cost", "seconds"), ("low", "seconds_low"), ("high", "seconds_high"))
        }
        frame = rows.assign(
            layout=[f"{r.layout}, {r.backend}" for r in rows_of(rows)],
            panel=[mode_name(m).capitalize() for m in rows["mode"]],
            shown=[formats.seconds(s / units) for s, units in zip(rows["seconds"], rows["units"])],
            length=rows["tokens"],
            **costs,
        ).sort_values("length", kind="stable")
        names = list(dict.fromkeys(frame["panel"]))
        style = Style(list(dict.fromkeys(frame["layout"])))
        y = alt.Y("cost:Q", scale=alt.Scale(zero=True), title="Microseconds a token")
        tips = tooltips(("shown", "a token"), ("rounds", "rounds"), ("length", "tokens"))
        curves = style.curves(frame, lengths_axis(frame["length"].tolist(), "Tokens"), y, tips)
        chart = panels(curves, frame, names, columns=2, width=358, height=220, free=True)
        title = titled("What a token costs, by length", str(variant))
        caption = "Median over the rounds, bands from the first to the third quartile; tokens on a logarithmic axis. "
        caption += "Of decoding, the tokens that were read before."
        text = f"Small multiples: {formats.listing(names)}; numbers in the tables."
        subtitle = "microseconds a token, lower is better, flat is linear time"
        yield Figure(numbered("op-lengths", number), "op-speed", title, caption, text, finish(chart, title, subtitle))
