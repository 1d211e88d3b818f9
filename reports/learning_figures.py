"""How layouts learnt, a panel each: loss and held-out accuracy over the tokens read, and what the sweep tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pandas as pd

from . import formats
from .charts import COUNT, MUTED, PERCENT, Figure, Style, finish, numbered, round_values, titled, tooltips
from .statistics import rows_of
from .tables import RunData
from .taught import Taught, teaching

_PANEL = (206, 130)  # pixels
_COLUMNS = 3
_SOLVED, _OPEN, _ENDED = "bar reached", "ended without the bar", "end of the training"


def learning_figures(run: RunData) -> Iterator[Figure]:
    yield from _losses(run)
    yield from _accuracies(run)
    yield from _sweeps(run)


# --- Loss ---


def _losses(run: RunData) -> Iterator[Figure]:
    curves = run.curves.dropna(subset=["loss"])
    for number, ((measure, variant), own) in enumerate(curves.groupby(["measure", "variant"], sort=False)):
        trainings = _trainings(run, str(measure), str(variant))
        own = own.merge(trainings, on=["layout", "seed"], how="left")
        own["tokens"] = own["step"] * (own["all_tokens"] / own["steps"])
        own = own.assign(kind="curve")
        marks = pd.DataFrame(
            [mark for _, curve in own.groupby(["layout", "seed"], sort=False) for mark in _ends(curve)]
        )
        notes = _notes(own, teaching(run, str(measure)), str(variant))
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
        ends = {name: [f"{loss:.3f}" for loss in own] for name, own in last.groupby("layout", sort=False)}
        text = "Last loss of each seed: " + "; ".join(f"{name} {', '.join(e)}" for name, e in ends.items()) + "."
        data = _written(own, {"step": "step", "tokens": "tokens read", "loss": "loss"})
        subtitle = "loss of the training batches in nats, a curve for each seed; ● bar reached, ○ ended without it"
        chart = finish(chart, title, subtitle)
        yield Figure(numbered("training", number), "training", title, caption, text, chart, data)


def _trainings(run: RunData, measure: str, variant: str) -> pd.DataFrame:
    own = run.training[(run.training["measure"] == measure) & (run.training["variant"] == variant)]
    kept = own[["layout", "seed", "tokens", "steps", "passed", "tokens_to_solve"]]
    return kept.rename(columns={"tokens": "all_tokens"}).drop_duplicates(["layout", "seed"])


def _ends(curve: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Where a seed solved the task, or else the end of its curve, if it was held to a bar."""
    first = curve.iloc[0]
    solved = first["passed"] == True and not formats.missing(first["tokens_to_solve"])  # noqa: E712, None is no bar
    if not solved and first["passed"] != False:  # noqa: E712
        return
    nearest = (curve["tokens"] - (first["tokens_to_solve"] if solved else curve["tokens"].max())).abs().idxmin()
    place = {"tokens": first["tokens_to_solve"]} if solved else {}
    known = curve.loc[nearest, ["layout", "seed", "tokens", "loss"]].to_dict()
    yield {**known, **place, "kind": "mark", "outcome": _SOLVED if solved else _OPEN}


def _notes(own: pd.DataFrame, taught: list[Taught], variant: str) -> pd.DataFrame:
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
        data = _written(own, {"step": "step", "tokens": "tokens read", "accuracy": "held-out accuracy"})
        chart = finish(chart, title, subtitle)
        yield Figure(numbered("learning", number), "taught", title, caption, f"{text}.", chart, data)


def _evaluations(run: RunData) -> pd.DataFrame:
    """A row for each evaluation on held-out data of a training that passed its bar."""
    passed = run.training[run.training["passed"] == True]  # noqa: E712, None is no bar
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
    kept = ["layout", "seed", "tokens", value, "kind", "outcome", "note"]
    frame = frame.reindex(columns=kept).round({"tokens": 0, value: 4})
    frame = frame.astype({"seed": float}).assign(outcome=_texts(frame["outcome"]), note=_texts(frame["note"]))
    layouts = [name for name in run.layouts if name in set(frame["layout"])]
    axis = alt.Axis(labelExpr=COUNT, tickCount=4, labelFlush=True)
    x = alt.X("tokens:Q", title="Tokens read", axis=axis, scale=alt.Scale(nice=False, zero=True))
    base = alt.Chart().encode(x=x, y=y, color=style.colour())
    tips = [*tooltips(("seed", "seed")), alt.Tooltip("tokens:Q", title="tokens read", format=".3~s"), shown]
    lines = base.transform_filter(alt.datum.kind == "curve").mark_line(strokeWidth=1.4)
    marks = base.transform_filter(alt.datum.kind == "mark").mark_point(size=60, strokeWidth=1.8)
    fill = alt.condition(alt.datum.outcome == _SOLVED, style.colour(), alt.value("white"))
    note = alt.Chart().transform_filter(alt.datum.kind == "note").mark_text(align="right", color=MUTED)
    layers = [
        lines.encode(detail="seed:N", opacity=style.emphasis, tooltip=tips),
        marks.encode(fill=fill, opacity=style.emphasis, tooltip=[*tips, alt.Tooltip("outcome:N", title="mark")]),
        note.encode(x=alt.value(_PANEL[0] - 4), y=alt.value(_PANEL[1] - 10 if bars else 10), text="note:N"),
    ]
    for bar in bars:
        rule = alt.Chart(pd.DataFrame([{value: bar}])).mark_rule(strokeDash=[4, 3], color=MUTED)
        layers.append(rule.encode(y=alt.Y(f"{value}:Q")))
    layers[0] = layers[0].add_params(style.select)
    chart = alt.layer(*layers, data=frame).properties(width=_PANEL[0], height=_PANEL[1])
    header = alt.Header(labelLimit=_PANEL[0])
    facet = alt.Facet("layout:N", sort=layouts, title=None, header=header)
    chart = chart.facet(facet, columns=min(_COLUMNS, len(layouts)), spacing=14)
    return chart.resolve_axis(x="independent")


def _texts(column: pd.Series) -> list[str | None]:
    """JSON has no nan among words."""
    return [text if isinstance(text, str) else None for text in column]


def _written(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    named = {"layout": "layout", "seed": "seed", **columns}
    return frame[list(named)].rename(columns=named)


# --- The sweep ---


def _sweeps(run: RunData) -> Iterator[Figure]:
    choices = {line.case: (line.metrics or {}).get("choice") or {} for line in run.lines if line.measure == "tuning"}
    tuning = run.tuning[run.tuning["score"].notna()]
    for number, ((measure, variant), own) in enumerate(tuning.groupby(["measure", "variant"], sort=False)):
        frame = _tried(own, choices)
        rated = frame["rate"].notna().all() and frame["rate"].nunique() > 1
        if frame["choice"].nunique() < 2:
            continue
        yield _sweep(run, frame, rated, numbered("sweep", number), str(measure), str(variant))


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
    layers = [*([line] if rated else []), point.add_params(style.select), ring.encode(opacity=style.emphasis)]
    chart = alt.layer(*layers, data=frame).properties(width=_PANEL[0], height=_PANEL[1])
    facet = alt.Facet("layout:N", sort=layouts, title=None, header=alt.Header(labelLimit=_PANEL[0]))
    chart = chart.facet(facet, columns=min(_COLUMNS, len(layouts)), spacing=14).resolve_axis(x="independent")
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
    chart = finish(chart, title, "validation loss, lower is better; ringed: chosen")
    return Figure(name, "taught", title, caption, text, chart, frame[list(columns)].rename(columns=columns))
