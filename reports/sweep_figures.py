"""What the sweep tried: validation loss of every choice, a panel for each layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import MUTED, Figure, Style, finish, in_words, round_values, titled, tooltips
from .learning_figures import COLUMNS, PANEL
from .statistics import rows_of
from .table import numbered
from .tables import RunData


def sweep_figures(run: RunData) -> Iterator[Figure]:
    choices = {line.case: (line.metrics or {}).get("choice") or {} for line in run.lines if line.measure == "tuning"}
    tuning = run["tuning"][run["tuning"]["score"].notna()]
    for number, ((measure, variant), own) in enumerate(tuning.groupby(["measure", "variant"], sort=False)):
        frame = _tried(own, choices)
        rated = frame["rate"].notna().all() and frame["rate"].nunique() > 1
        if frame["choice"].nunique() < 2:
            continue
        yield _sweep(run, frame, bool(rated), numbered("sweep", number), str(measure), str(variant))


def _tried(own: pd.DataFrame, choices: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row for each choice and rung, the mean over the seeds: `rate` and, of its other options, `others`."""
    frame = own[["layout", "choice", "rung", "score", "tokens", "chosen"]].astype({"score": float, "tokens": float})
    options = [choices.get(case, {}) for case in own["case"]]
    frame["rate"] = pd.Series([choice.get("learning_rate") for choice in options], frame.index, dtype=float)
    frame["others"] = [
        ", ".join(f"{key} = {value}" for key, value in choice.items() if key != "learning_rate") for choice in options
    ]
    keys = ["layout", "choice", "rung", "rate", "others"]
    pooled = frame.groupby(keys, sort=False, as_index=False, dropna=False)
    return pooled.agg({"score": "mean", "tokens": "median", "chosen": "any"})


def _sweep(run: RunData, frame: pd.DataFrame, rated: bool, name: str, measure: str, variant: str) -> Figure:
    rungs = sorted(frame["rung"].unique())
    spent = frame.groupby("rung")["tokens"].median()
    named = {rung: f"rung {i}, {formats.si(spent[rung])} tokens" for i, rung in enumerate(rungs, start=1)}
    last = frame.groupby(["layout", "choice"])["rung"].transform("max")
    frame = frame.assign(
        stage=frame["rung"].map(named),
        shown=[f"{score:.4g}" for score in frame["score"]],
        outcome=frame["chosen"].map({True: "chosen", False: "tried"}),
        ring=frame["chosen"] & (frame["rung"] == last),
    )
    style = Style(run.layouts, legend=None)
    layouts = [layout for layout in run.layouts if layout in set(frame["layout"])]
    steep = frame["score"].min() > 0 and frame["score"].max() / frame["score"].min() > 20
    scale = alt.Scale(type="log", nice=False, padding=10) if steep else alt.Scale(zero=False, padding=10)
    axis = alt.Axis(tickCount=4, format="~g")
    if steep:
        axis.values = round_values(frame["score"].min(), frame["score"].max())
    y = alt.Y("score:Q", scale=scale, title="Validation loss (nats)", axis=axis)
    if rated:
        low, high = frame["rate"].min() / 1.3, frame["rate"].max() * 1.3
        values = round_values(low, high) if frame["rate"].nunique() > 6 else sorted(frame["rate"].unique())
        log = alt.Scale(type="log", domain=[low, high], nice=False)
        x: Any = alt.X("rate:Q", scale=log, title="Learning rate", axis=alt.Axis(format="~g", values=values))
    else:
        x = alt.X("choice:N", title=None, axis=alt.Axis(labelAngle=-30, labelLimit=170))
    shapes = alt.Scale(domain=list(named.values()), range=["circle", "square", "triangle-up", "diamond", "cross"])
    legend = alt.Legend(orient="bottom", title=None, symbolFillColor=MUTED, symbolStrokeWidth=0, labelLimit=300)
    base = alt.Chart().encode(x=x, y=y, color=style.colour())
    tips = tooltips(("choice", "tried"), ("stage", "rung"), ("shown", "validation loss"), ("outcome", "outcome"))
    point = base.mark_point(filled=True, size=60).encode(
        shape=alt.Shape("stage:N", scale=shapes, legend=legend), opacity=style.emphasis, tooltip=tips
    )
    line = base.mark_line(strokeWidth=1.2).encode(detail=["stage:N", "others:N"], opacity=style.emphasis)
    ring = base.transform_filter(alt.datum.ring).mark_point(size=230, shape="circle", strokeWidth=1.8, filled=False)
    layers = [*([line] if rated else []), point, ring.encode(opacity=style.emphasis)]
    chart = alt.layer(*layers, data=frame).properties(width=PANEL[0], height=PANEL[1])
    facet = alt.Facet("layout:N", sort=layouts, title=None, header=alt.Header(labelLimit=PANEL[0]))
    chart = chart.facet(facet, columns=min(COLUMNS, len(layouts)), spacing=14).resolve_axis(x="independent")
    title = titled("What the sweep tried" if measure == "recall" else f"What the sweep tried, {measure}", variant)
    caption = (
        "Validation loss of every choice, by rung: the same budget for every layout, and the better choices go on. "
    )
    caption += "Ringed: the choice that was trained with. Validation data is neither trained on nor reported."
    others = [text for text in dict.fromkeys(frame["others"]) if text]
    caption += f" Other options tried with each rate: {'; '.join(others)}." if rated and len(others) > 1 else ""
    best = frame[frame["ring"]]
    text = "Chosen: " + "; ".join(f"{r.layout} {r.choice} (loss {r.shown})" for r in rows_of(best)) + "."
    columns = {"layout": "layout", "choice": "tried", "stage": "rung", "score": "validation loss", "outcome": "outcome"}
    finished = finish(chart, title, "validation loss, lower is better; ringed: chosen")
    return Figure(name, title, caption, text, finished, in_words(frame, columns))
