"""What was learnt and how: tokens to solve with those that did not, each option that tuning tried, every training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import COUNT, MUTED, WIDTH, Figure, Style, finish, numbered, titled, tooltips
from .statistics import rows_of
from .table import Table, in_brackets
from .tables import RunData
from .taught import NOT_TAUGHT, tokens_to_solve

_ROW = 26  # pixels of a layout


def taught_tables(run: RunData) -> Iterator[Table]:
    yield from _solve_tables(run)
    yield from _tuning_tables(run)


def taught_figures(run: RunData) -> Iterator[Figure]:
    """Tokens to solve, a point for every seed; an arrow where the budget ended first."""
    found = list(tokens_to_solve(run))
    for number, variant in enumerate(dict.fromkeys(status.variant for status, _ in found)):
        rows = pd.concat([own for status, own in found if status.variant == variant])
        rows = rows[rows["tokens"].notna()]
        if not len(rows):
            continue
        solved = rows["tokens_to_solve"].notna()
        rows = rows.assign(
            read=rows["tokens_to_solve"].astype(float).fillna(rows["tokens"].astype(float)),
            outcome=solved.map({True: "bar reached", False: "budget ended before the bar"}),
        )
        rows["shown"] = [f"{'' if ok else 'more than '}{formats.si(n)}" for ok, n in zip(solved, rows["read"])]
        bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in found if status.variant == variant)))
        yield _solve_figure(run, rows[["layout", "seed", "read", "outcome", "shown"]], number, variant, bar)


def _solve_figure(run: RunData, rows: pd.DataFrame, number: int, variant: str, bar: str) -> Figure:
    style = Style(run.layouts, legend=None)
    names = [name for name in run.layouts if name in set(rows["layout"])]
    scale = alt.Scale(type="log", nice=False, padding=24)
    x = alt.X("read:Q", scale=scale, title="Tokens read in training", axis=alt.Axis(labelExpr=COUNT, tickCount=6))
    y = alt.Y("layout:N", sort=names, title=None, axis=alt.Axis(labelLimit=240, grid=True, ticks=False))
    outcomes = ["bar reached", "budget ended before the bar"]
    shape = alt.Shape(
        "outcome:N",
        scale=alt.Scale(domain=outcomes, range=["circle", "triangle-right"]),
        legend=alt.Legend(orient="bottom", title=None, symbolFillColor=MUTED, symbolStrokeWidth=0, labelLimit=300),
    )
    point = alt.Chart(rows).mark_point(filled=True, size=90, opacity=0.85)
    tips = tooltips(("seed", "seed"), ("shown", "tokens"), ("outcome", "outcome"))
    chart = point.encode(x=x, y=y, shape=shape, color=style.colour(), tooltip=tips).add_params(style.select)
    chart = alt.layer(chart).properties(width=WIDTH, height=_ROW * len(names))
    title = titled("Tokens to solve", variant)
    caption = (
        "How much each seed had read when it first reached the bar on data that was held out; a triangle is a seed "
    )
    caption += "that had not reached it when the budget ended."
    text = "; ".join(f"{r.layout}, seed {r.seed}: {r.shown}" for r in rows_of(rows)) + "."
    subtitle = f"bar: {bar}; one mark for each seed, further left is sooner"
    return Figure(numbered("solve", number), "taught", title, caption, text, finish(chart, title, subtitle))


def _solve_tables(run: RunData) -> Iterator[Table]:
    found = list(tokens_to_solve(run))
    for number, variant in enumerate(dict.fromkeys(status.variant for status, _ in found)):
        here = [(status, own) for status, own in found if status.variant == variant]
        rows = [_solve_row(status.layout, status.short, own) for status, own in here]
        bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in here)))
        title = f"Tokens to solve: {bar}{in_brackets(variant)}"
        columns = ["Layout", "Taught", "Median", "Each seed", "Chosen by tuning", "Time of a training"]
        note = (
            "Tokens read when the bar was first reached on held-out data. `>`: not reached when the budget ended. The "
            "median counts those as longer than all others."
        )
        yield Table(numbered("solve", number), "taught", title, columns, rows, note.replace("`", ""))


def _solve_row(layout: str, short: str, own: pd.DataFrame) -> list[str]:
    each = [_seed_tokens(r) for r in rows_of(own)]
    reached = own["tokens_to_solve"].astype(float).fillna(float("inf"))
    median = reached.median()
    middle = formats.si(median) if median != float("inf") else NOT_TAUGHT if reached.min() == median else "not reached"
    chosen = formats.listing([text for text in dict.fromkeys(own["chosen"]) if text]) or formats.NOTHING
    return [layout, short, middle, ", ".join(each), chosen, formats.seconds(own["seconds"].astype(float).median())]


def _seed_tokens(row: Any) -> str:
    if row.status != "ok":
        return row.status.replace("_", " ")
    solved = not formats.missing(row.tokens_to_solve)
    return formats.si(row.tokens_to_solve) if solved else f"> {formats.si(row.tokens)}"


def _tuning_tables(run: RunData) -> Iterator[Table]:
    for number, ((measure, variant), own) in enumerate(run.tuning.groupby(["measure", "variant"], sort=False)):
        keys = ["layout", "choice", "rung"]
        numbers = ["tokens", "score", "accuracy"]
        own = own.astype(dict.fromkeys(numbers, float))
        grouped = own.groupby(keys, sort=False, as_index=False)
        pooled = grouped.agg({**dict.fromkeys(numbers, "mean"), "chosen": "any", "seed": "nunique"})
        pooled = pooled.sort_values("rung", kind="stable").sort_values(
            "layout", key=lambda names: names.map(run.layouts.index), kind="stable"
        )
        taught = set(own[own["accuracy"].notna()]["layout"])
        last = pooled.groupby("layout")["rung"].transform("max") == pooled["rung"]
        rows = [
            [
                r.layout,
                r.choice,
                str(int(r.rung) + 1),
                formats.si(r.tokens),
                f"{r.score:.3f}" if not formats.missing(r.score) else formats.NOTHING,
                formats.percent(r.accuracy) if r.layout in taught else NOT_TAUGHT,
                "chosen" if r.chosen and final else "",
            ]
            for r, final in zip(rows_of(pooled), last)
        ]
        columns = ["Layout", "Tried", "Rung", "Tokens", "Score", "Accuracy", "Chosen"]
        title = f"Tuning: what each choice reached{in_brackets(variant)}"
        if measure != "recall":
            title = f"{title}, {measure}"
        note = (
            "The same budget for every layout. At each rung the better choices go on with more tokens. Score: loss in "
            "nats on validation data that is neither trained on nor reported, lower is better."
        )
        yield Table(numbered("tuning", number), "taught", title, columns, rows, note, text_columns=2)
