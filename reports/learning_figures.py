"""How layouts learnt, a panel each: loss and held-out accuracy over the tokens read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from . import formats
from .charts import (
    COUNT,
    MUTED,
    PERCENT,
    Figure,
    Style,
    alongside,
    finish,
    in_words,
    on_page,
    titled,
    tooltips,
    words,
)
from .statistics import rows_of
from .table import numbered
from .tables import RunData
from .taught import Taught, teaching

PANEL = (206, 130)  # pixels
MOST_CURVES = 100  # of more trainings a panel shows median and quartiles over its seeds
STRETCHES = 60  # of the tokens read, in each of which they are taken
COLUMNS = 3
_SOLVED, _OPEN = "bar reached", "ended without the bar"
_SEED = {"layout": "layout", "seed": "seed"}


def learning_figures(run: RunData) -> Iterator[Figure]:
    yield from _losses(run)
    yield from _accuracies(run)


# --- Loss ---


def _losses(run: RunData) -> Iterator[Figure]:
    curves = run["curves"].dropna(subset=["loss"])
    for number, ((measure, variant), own) in enumerate(curves.groupby(["measure", "variant"], sort=False)):
        trainings = _trainings(run, str(measure), str(variant))
        own = own.merge(trainings, on=["layout", "seed"], how="left")
        own["tokens"] = own["step"] * (own["all_tokens"] / own["steps"])
        own = own.assign(kind="curve")
        notes = _notes(own, teaching(run, str(measure)), str(variant))
        if _many(own):
            yield _pooled_figure(run, own, "loss", notes, numbered("training", number), str(measure), str(variant))
            continue
        marks = pd.DataFrame(
            [mark for _, curve in own.groupby(["layout", "seed"], sort=False) for mark in _ends(curve)]
        )
        frame = pd.concat([own, marks, notes], ignore_index=True)
        style = Style(run.layouts, legend=None)
        y = alt.Y("loss:Q", scale=alt.Scale(zero=True), title="Loss (nats)", axis=alt.Axis(tickCount=4))
        chart = _panels(frame, style, y, alt.Tooltip("loss:Q", format=".3f"), run, "loss")
        what = "Training curves" if measure == "recall" else f"Training curves, {measure}"
        title = titled(what, str(variant))
        caption = (
            "Loss of the training batches in nats per scored token against the tokens read, a curve for each seed. "
        )
        caption += "A filled mark: there the bar was first reached on held-out data; a hollow one: the training ended "
        caption += "without it."
        last = own.sort_values("step").groupby(["layout", "seed"], sort=False).last()["loss"]
        ends = [
            f"{name!s} {', '.join(f'{loss:.3f}' for loss in seeds)}"
            for name, seeds in last.groupby("layout", sort=False)
        ]
        text = f"Last loss of each seed: {'; '.join(ends)}."
        data = in_words(own, {**_SEED, "step": "step", "tokens": "tokens read", "loss": "loss"})
        subtitle = "loss of the training batches in nats, a curve for each seed; ● bar reached, ○ ended without it"
        chart = finish(chart, title, subtitle)
        yield Figure(numbered("training", number), title, caption, text, chart, data)


def _trainings(run: RunData, measure: str, variant: str) -> pd.DataFrame:
    own = run["training"][(run["training"]["measure"] == measure) & (run["training"]["variant"] == variant)]
    kept = own[["layout", "seed", "tokens", "steps", "passed", "tokens_to_solve"]]
    return kept.rename(columns={"tokens": "all_tokens"}).drop_duplicates(["layout", "seed"])


def _ends(curve: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Where a seed solved the task, or else the end of its curve, if it was held to a bar."""
    first = curve.iloc[0]
    solved = first["passed"] == True and not formats.missing(first["tokens_to_solve"])  # noqa: E712, None is no bar
    if not solved and first["passed"] != False:  # noqa: E712
        return
    nearest = (curve["tokens"] - (first["tokens_to_solve"] if solved else curve["tokens"].max())).abs().idxmin()
    known = {key: curve.loc[nearest, key] for key in ("layout", "seed", "tokens", "loss")}
    place = {"tokens": first["tokens_to_solve"]} if solved else {}
    yield {**known, **place, "kind": "mark", "outcome": _SOLVED if solved else _OPEN}


def _notes(own: pd.DataFrame, taught: Sequence[Taught], variant: str) -> pd.DataFrame:
    """What stands in the corner of a panel: how many seeds were taught."""
    said = {t.layout: t.short for t in taught if t.variant == variant and t.passed is not None}
    rows = [
        {"layout": name, "kind": "note", "note": f"taught: {said[name]}"}
        for name in own["layout"].unique()
        if name in said
    ]
    return pd.DataFrame(rows, columns=["layout", "kind", "note"])


# --- Held-out accuracy ---


def _accuracies(run: RunData) -> Iterator[Figure]:
    """Of the seeds that were taught; those of others say nothing of what a layout recalls."""
    found = _evaluations(run)
    for number, ((measure, variant), own) in enumerate(found.groupby(["measure", "variant"], sort=False)):
        if own.groupby(["layout", "seed"])["tokens"].nunique().max() < 2:
            continue
        own = own.assign(kind="curve")
        if _many(own):
            notes = _notes(own, teaching(run, str(measure)), str(variant))
            name = numbered("learning", number)
            yield _pooled_figure(run, own, "accuracy", notes, name, str(measure), str(variant))
            continue
        solved = own[own["tokens"] == own["tokens_to_solve"]].assign(kind="mark", outcome=_SOLVED)
        status = [t for t in teaching(run, str(measure)) if t.variant == variant]
        frame = pd.concat([own, solved, _notes(own, status, str(variant))], ignore_index=True)
        style = Style(run.layouts, legend=None)
        axis = alt.Axis(labelExpr=PERCENT, values=[0, 0.25, 0.5, 0.75, 1])
        y = alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=axis, title="Held-out accuracy")
        bars = sorted(own["bar"].dropna().unique())
        chart = _panels(frame, style, y, alt.Tooltip("accuracy:Q", format=".1%"), run, "accuracy", bars)
        title = titled("Held-out accuracy while learning", str(variant))
        told = formats.listing(list(dict.fromkeys(t.bar for t in status if t.bar)))
        caption = (
            "Accuracy on held-out data against the tokens read, a curve for each seed that was taught; dashed: the "
        )
        caption += (
            f"bar, {told}; the mark is where it was first reached. Seeds that ended below it are not drawn, since "
        )
        caption += "nothing is claimed of what they recall; their losses are."
        text = "Bar first reached: " + "; ".join(
            _reached(name, seeds) for name, seeds in own.groupby("layout", sort=False)
        )
        missed = [f"{t.layout} ({t.short})" for t in status if t.untaught or t.in_part]
        subtitle = [f"bar: {told}", *([f"not taught with every seed: {', '.join(missed)}"] if missed else [])]
        data = in_words(own, {**_SEED, "step": "step", "tokens": "tokens read", "accuracy": "held-out accuracy"})
        chart = finish(chart, title, subtitle)
        yield Figure(numbered("learning", number), title, caption, f"{text}.", chart, data)


def _evaluations(run: RunData) -> pd.DataFrame:
    """A row for each evaluation on held-out data of a training that passed its bar."""
    passed = run["training"][run["training"]["passed"] == True]  # noqa: E712, None is no bar
    records = {
        line.case: (line.metrics or {}).get("training") or {} for line in run.lines if line.measure == "training"
    }
    rows = [
        {**{key: getattr(r, key) for key in keys}, "step": step, "tokens": tokens, "accuracy": accuracy}
        for keys in [("layout", "measure", "variant", "seed", "bar", "tokens_to_solve")]
        for r in rows_of(passed)
        for step, tokens, accuracy in records.get(r.case, {}).get("evaluations") or []
    ]
    columns = ["layout", "measure", "variant", "seed", "bar", "tokens_to_solve", "step", "tokens", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def _reached(layout: object, own: pd.DataFrame) -> str:
    each = own.drop_duplicates("seed")
    return f"{layout} {', '.join(formats.si(tokens) for tokens in each['tokens_to_solve'])} tokens"


# --- Many seeds ---


def _many(own: pd.DataFrame) -> bool:
    return len(own[["layout", "seed"]].drop_duplicates()) > MOST_CURVES


def _pooled_figure(
    run: RunData, own: pd.DataFrame, value: str, notes: pd.DataFrame, name: str, measure: str, variant: str
) -> Figure:
    """Median and quartiles over the seeds of each layout, in stretches of the tokens read."""
    pooled = _pooled(own, value)
    style = Style(run.layouts, legend=None)
    if value == "loss":
        what, unit = "Training curves", "Loss of the training batches in nats per scored token"
        y = alt.Y("loss:Q", scale=alt.Scale(zero=True), title="Loss (nats)", axis=alt.Axis(tickCount=4))
        tip, written = alt.Tooltip("loss:Q", format=".3f"), "{:.3f}"
    else:
        what, unit = "Held-out accuracy while learning", "Accuracy on held-out data, of the seeds that were taught,"
        axis = alt.Axis(labelExpr=PERCENT, values=[0, 0.25, 0.5, 0.75, 1])
        y = alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=axis, title="Held-out accuracy")
        tip, written = alt.Tooltip("accuracy:Q", format=".1%"), "{:.1%}"
    bars = sorted(own["bar"].dropna().unique()) if value == "accuracy" else []
    chart = _panels(pd.concat([pooled, notes], ignore_index=True), style, y, tip, run, value, bars)
    seeds = own.groupby("layout")["seed"].nunique()
    least, most = pooled["results"].min(), pooled["results"].max()
    title = titled(f"{what}{f', {measure}' if measure != 'recall' else ''}", variant)
    caption = f"{unit} against the tokens read. Line: median, band: first to third quartile, over up to {seeds.max()} "
    caption += f"seeds of a layout, in {STRETCHES} equal stretches of the tokens; a point stands for {least:,} to "
    caption += f"{most:,} values. Each seed by itself is in tables/."
    ends = pooled.sort_values("tokens").groupby("layout", sort=False).last()[value]
    text = f"Last median: {'; '.join(f'{name!s} {written.format(end)}' for name, end in ends.items())}."
    named = {"layout": "layout", "tokens": "tokens read", value: value, "low": "first quartile"}
    data = in_words(pooled, {**named, "high": "third quartile", "results": "values"})
    chart = finish(chart, title, f"{value}, median and quartiles over the seeds of each layout")
    return Figure(name, title, caption, text, chart, data)


def _pooled(own: pd.DataFrame, value: str) -> pd.DataFrame:
    """`value` (median), `low`, `high` (quartiles) and `results`, of each layout and stretch of the tokens."""
    width = float(own["tokens"].max()) / STRETCHES
    stretch = (own["tokens"].astype(float) / width).apply(np.ceil).clip(lower=1)
    groups = own.assign(stretch=stretch).groupby(["layout", "stretch"], sort=False)[value]
    found = groups.quantile(np.array([0.25, 0.5, 0.75])).unstack()
    found.columns = ["low", value, "high"]
    found = found.assign(results=groups.size()).reset_index().sort_values(["layout", "stretch"])
    return found.assign(tokens=found["stretch"] * width, kind="curve").drop(columns="stretch")


# --- What both share ---


def _panels(
    frame: pd.DataFrame,
    style: Style,
    y: alt.Y,
    shown: alt.Tooltip,
    run: RunData,
    value: str,
    bars: Sequence[float] = (),
) -> Any:
    """A panel for each layout: a line for each seed, marks where seeds solved or ended, a note where there is room.

    bars: ruled across.
    """
    pooled = "results" in frame
    kept = ["layout", "seed", "tokens", value, "kind", "outcome", "note", *(["low", "high", "results"] * pooled)]
    frame = frame.reindex(columns=kept).round({"tokens": 0, value: 4, "low": 4, "high": 4})
    frame = frame.astype({"seed": float}).assign(outcome=words(frame["outcome"]), note=words(frame["note"]))
    layouts = [name for name in run.layouts if name in set(frame["layout"])]
    axis = alt.Axis(labelExpr=COUNT, tickCount=4, labelFlush=True)
    x = alt.X("tokens:Q", title="Tokens read", axis=axis, scale=alt.Scale(nice=False, zero=True))
    base = alt.Chart().encode(x=x, y=y, color=style.colour())
    whose = ("results", "values") if pooled else ("seed", "seed")
    tips = [*tooltips(whose), alt.Tooltip("tokens:Q", title="tokens read", format=".3~s"), shown]
    lines = base.transform_filter(alt.datum.kind == "curve").mark_line(strokeWidth=1.4)
    marks = base.transform_filter(alt.datum.kind == "mark").mark_point(size=60, strokeWidth=1.8)
    fill = alt.condition(alt.datum.outcome == _SOLVED, style.colour(), alt.value(on_page("white", "#1d2126")))
    note = alt.Chart().transform_filter(alt.datum.kind == "note").mark_text(align="right", color=MUTED)
    curves = base.transform_filter(alt.datum.kind == "curve")
    band = [curves.mark_area().encode(y=alongside(y, "low"), y2="high:Q", opacity=style.faint)] if pooled else []
    layers = [
        *band,
        lines.encode(detail="seed:N", opacity=style.emphasis, tooltip=tips),
        marks.encode(fill=fill, opacity=style.emphasis, tooltip=[*tips, alt.Tooltip("outcome:N", title="mark")]),
        note.encode(x=alt.value(PANEL[0] - 4), y=alt.value(PANEL[1] - 10 if bars else 10), text="note:N"),
    ]
    for bar in bars:
        rule = alt.Chart(pd.DataFrame([{value: bar}])).mark_rule(strokeDash=[4, 3], color=MUTED)
        layers.append(rule.encode(y=alt.Y(f"{value}:Q")))
    chart = alt.layer(*layers, data=frame).properties(width=PANEL[0], height=PANEL[1])
    header = alt.Header(labelLimit=PANEL[0])
    facet = alt.Facet("layout:N", sort=layouts, title=None, header=header)
    chart = chart.facet(facet, columns=min(COLUMNS, len(layouts)), spacing=14)
    return chart.resolve_axis(x="independent")
