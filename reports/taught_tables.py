"""What was learnt and how: tokens to solve with those that did not, each option that tuning tried, every training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import COUNT, MUTED, WIDTH, Figure, Style, finish, numbered, round_values, titled, tooltips
from .statistics import rows_of
from .table import Table, in_brackets
from .tables import RunData
from .taught import NOT_TAUGHT, tokens_to_solve

_ROW = 26  # pixels of a layout


def taught_tables(run: RunData) -> Iterator[Table]:
    yield from _solve_tables(run)
    yield from _tuning_tables(run)


def taught_figures(run: RunData) -> Iterator[Figure]:
    """Tokens to solve, a point for every seed; an arrow where the training ended without the bar."""
    found = list(tokens_to_solve(run))
    for number, variant in enumerate(dict.fromkeys(status.variant for status, _ in found)):
        rows = pd.concat([own for status, own in found if status.variant == variant])
        rows = rows[rows["tokens"].notna()]
        if not len(rows):
            continue
        solved = rows["tokens_to_solve"].notna()
        rows = rows.assign(
            read=rows["tokens_to_solve"].astype(float).fillna(rows["tokens"].astype(float)),
            outcome=solved.map({True: "bar reached", False: "training ended without the bar"}),
        )
        rows["shown"] = [f"{'' if ok else 'more than '}{formats.si(n)}" for ok, n in zip(solved, rows["read"])]
        bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in found if status.variant == variant)))
        counts = {status.layout: status.short for status, _ in found if status.variant == variant}
        yield _solve_figure(run, rows[["layout", "seed", "read", "outcome", "shown"]], number, variant, bar, counts)


def _solve_figure(
    run: RunData, rows: pd.DataFrame, number: int, variant: str, bar: str, counts: dict[str, str]
) -> Figure:
    style = Style(run.layouts, legend=None)
    names = [name for name in run.layouts if name in set(rows["layout"])]
    low, high = rows["read"].min() / 1.2, rows["read"].max() * 1.1
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(labelExpr=COUNT, values=round_values(low, high))
    x = alt.X("read:Q", scale=scale, title="Tokens read in training", axis=axis)
    y = alt.Y("layout:N", sort=names, title=None, axis=alt.Axis(labelLimit=240, grid=True, ticks=False))
    outcomes = ["bar reached", "training ended without the bar"]
    shape = alt.Shape(
        "outcome:N",
        scale=alt.Scale(domain=outcomes, range=["circle", "triangle-right"]),
        legend=alt.Legend(orient="bottom", title=None, symbolFillColor=MUTED, symbolStrokeWidth=0, labelLimit=300),
    )
    point = alt.Chart(rows).mark_point(filled=True, size=90)
    tips = tooltips(("seed", "seed"), ("shown", "tokens"), ("outcome", "outcome"))
    marks = point.encode(x=x, y=y, shape=shape, color=style.colour(), opacity=style.opacity(0.85), tooltip=tips)
    said = pd.DataFrame([{"layout": name, "text": counts[name]} for name in names])
    base = alt.Chart(said).mark_text(align="left", dx=10, fontSize=12, color=MUTED)
    chart = alt.layer(marks, base.encode(x=alt.value(WIDTH), y=y, text="text:N"))
    chart = chart.properties(width=WIDTH, height=_ROW * len(names))
    title = titled("Tokens to solve", variant)
    caption = (
        "How much each seed had read when it first reached the bar on data that was held out; a triangle is a seed "
    )
    caption += "whose training ended without it."
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
            "Tokens read when the bar was first reached on held-out data. >: the training ended without the bar. The "
            "median counts those as longer than all others."
        )
        yield Table(numbered("solve", number), "taught", title, columns, rows, note)


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
    """A row for each layout and choice, a column for each rung that it was tried at."""
    for number, ((measure, variant), own) in enumerate(run.tuning.groupby(["measure", "variant"], sort=False)):
        numbers = ["tokens", "score", "accuracy"]
        own = own.astype(dict.fromkeys(numbers, float))
        pooled = own.groupby(["layout", "choice", "rung"], sort=False, as_index=False)
        means = pooled.agg({**dict.fromkeys(numbers, "mean"), "chosen": "any"})
        taught, rungs = set(own[own["accuracy"].notna()]["layout"]), sorted(own["rung"].unique())
        rows = []
        for (layout, choice), tried in means.groupby(["layout", "choice"], sort=False):
            cells = {r.rung: _tried(r, layout in taught) for r in rows_of(tried)}
            texts = [cells.get(rung, formats.NOTHING) for rung in rungs]
            rows.append([str(layout), str(choice), *texts, "chosen" if tried["chosen"].any() else ""])
        spent = own.groupby("rung")["tokens"].median()
        names = [f"Rung {i}, {formats.si(spent[rung])} tokens" for i, rung in enumerate(rungs, start=1)]
        columns = ["Layout", "Tried", *names, "Chosen"]
        title = f"Tuning: what each choice reached{in_brackets(variant)}"
        title += "" if measure == "recall" else f", {measure}"
        note = (
            "The same budget for every layout; at each rung the better choices go on. Loss in nats (lower is "
            "better) and accuracy, on validation data that is neither trained on nor reported."
        )
        yield Table(numbered("tuning", number), "taught", title, columns, rows, note, text_columns=2)


def _tried(row: Any, taught: bool) -> str:
    """`2.500, 25.0 %`; no accuracy of a layout that was not taught."""
    loss = formats.NOTHING if formats.missing(row.score) else f"{row.score:.3f}"
    return f"{loss}, {formats.percent(row.accuracy)}" if taught else f"{loss}, {NOT_TAUGHT}"
