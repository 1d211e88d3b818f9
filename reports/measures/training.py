"""Training: who was taught, after how many tokens, and how the loss fell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from .. import change, formats
from ..change import Change, Refused
from ..charts import (
    COUNT,
    MUTED,
    WIDTH,
    Figure,
    Style,
    alongside,
    finish,
    in_words,
    round_values,
    titled,
    tooltips,
)
from ..finding import Finding, Score, of
from ..inference import Solved, compare_successes, solved
from ..learning_figures import learning_figures
from ..lines import COMPILED, KEYS, Lines, tidy
from ..section import Section
from ..statistics import rows_of
from ..table import Table, in_brackets, numbered
from ..tables import RunData
from ..taught import NOT_TAUGHT, Taught, tokens_to_solve
from ..trainings import curve_rows, training_rows

COLUMNS = [*KEYS, "measure", "task", "lengths", "loads", "chosen", "steps", "tokens", "seconds", "first_loss"]
COLUMNS += [*COMPILED, "last_loss", "bar", "bar_length", "bar_load", "reached", "passed", "tokens_to_solve"]
COLUMNS += ["status", "case"]
CURVES = [*KEYS, "measure", "step", "loss"]
_ROW = 26  # pixels of a layout
MOST_MARKS = 200  # of more trainings the chart has one mark for each layout
MOST_SEEDS = 12  # that a cell of a table tells one by one

Trained = tuple[Taught, pd.DataFrame]  # a layout with its trainings


class Training(Section):
    measure = "training"
    title = "Taught first"
    order = 10

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        peak = any(line.measure == "training" and line.peak_bytes is not None for line, _ in lines)
        training = tidy(training_rows(lines), [*COLUMNS, *(["peak_bytes"] if peak else [])])
        return {"training": training, "curves": tidy(curve_rows(lines), CURVES)}

    def findings(self, run: RunData) -> Iterator[Finding]:
        for number, (variant, found) in enumerate(_by_variant(run).items()):
            yield _who_was_taught(variant, found, numbered("figure-solve", number))

    def figures(self, run: RunData) -> Iterator[Figure]:
        for number, (variant, found) in enumerate(_by_variant(run).items()):
            yield from _tokens_to_solve(run, number, variant, found)
        yield from learning_figures(run)

    def tables(self, run: RunData) -> Iterator[Table]:
        for number, (variant, found) in enumerate(_by_variant(run).items()):
            yield _solve_table(run, numbered("solve", number), variant, found)
        if len(run["training"]):
            yield _training_table(run)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        """Tokens to solve by layout: their median over seeds, nan while fewer than half solved, and how many did."""
        for status, own in tokens_to_solve(run):
            times = [None if formats.missing(t) else int(t) for t in own["tokens_to_solve"].astype(float)]
            result = solved(times, int(status.tokens or 0))
            where = {"layout": status.layout, "variant": status.variant, "seeds": result.seeds}
            yield {
                **where,
                "quantity": "tokens_to_solve",
                "value": result.median,
                "unit": "tokens",
                "count": result.solved,
            }
            yield {**where, "quantity": "seeds_taught", "value": status.passed, "unit": "seeds", "count": status.seeds}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        own, theirs = ({(s.layout, s.variant): rows for s, rows in tokens_to_solve(run)} for run in (before, after))
        for (layout, variant), rows in own.items():
            if (layout, variant) in theirs:
                yield from _changed(layout, variant, rows, theirs[layout, variant])


SECTION = Training()


def _by_variant(run: RunData) -> dict[str, list[Trained]]:
    """Layouts that were held to a bar, by variant."""
    found: dict[str, list[Trained]] = {}
    for status, own in tokens_to_solve(run):
        found.setdefault(status.variant, []).append((status, own))
    return found


def _solved(status: Taught, own: pd.DataFrame) -> Solved:
    times = [None if formats.missing(t) else int(t) for t in own["tokens_to_solve"].astype(float)]
    return solved(times, int(status.tokens or 0))


def _who_was_taught(variant: str, found: list[Trained], evidence: str) -> Finding:
    """How many layouts were taught, and after how many tokens."""
    medians = {status.layout: _solved(status, own).median for status, own in found}
    whole = [status.layout for status, _ in found if status.passed == status.seeds]
    said = [
        (medians[status.layout], f"{status.layout} {_tokens(medians[status.layout])} ({status.short})")
        for status, _ in found
        if not status.untaught
    ]
    sentence = "No layout was taught, so nothing is said of recall."
    if said:
        texts = [text for _, text in sorted(said, key=lambda pair: (pair[0] != pair[0], pair[0]))]
        sentence = f"Median tokens to solve, over seeds: {'; '.join(texts)}."
    bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in found)))
    scores = [
        Score(status.layout, f"{_tokens(medians[status.layout])} ({status.short})", _known(medians[status.layout]))
        if not status.untaught
        else Score(status.layout, f"{NOT_TAUGHT} ({status.short})")
        for status, _ in found
    ]
    return Finding(
        topic=f"Taught with every seed: {bar}{of(variant)}",
        winner=f"{len(whole)} of {len(found)} layouts",
        value="",
        sentence=sentence,
        evidence=evidence,
        column=f"Tokens to solve{of(variant)}",
        better="less",
        scores=tuple(scores),
    )


def _tokens(median: float) -> str:
    return "no median" if formats.missing(median) else f"{formats.si(median)} tokens"


def _known(value: float) -> float | None:
    return None if formats.missing(value) else value


def _tokens_to_solve(run: RunData, number: int, variant: str, found: list[Trained]) -> Iterator[Figure]:
    """A point for every seed; an arrow where the training ended without the bar."""
    rows = pd.concat([own for _, own in found])
    rows = rows[rows["tokens"].notna()]
    if not len(rows):
        return
    solved_here = rows["tokens_to_solve"].notna()
    rows = rows.assign(
        read=rows["tokens_to_solve"].astype(float).fillna(rows["tokens"].astype(float)),
        outcome=solved_here.map({True: "bar reached", False: "training ended without the bar"}),
    )
    rows["shown"] = [f"{'' if ok else 'more than '}{formats.si(n)}" for ok, n in zip(solved_here, rows["read"])]
    bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in found)))
    counts = {status.layout: status.short for status, _ in found}
    if len(rows) > MOST_MARKS:
        yield _solve_figure(run, _medians(rows), number, variant, bar, counts)
        return
    yield _solve_figure(run, rows[["layout", "seed", "read", "outcome", "shown"]], number, variant, bar, counts)


def _medians(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each layout: median and quartiles over its seeds; those without the bar count as what they read."""
    medians = []
    for layout, own in rows.groupby("layout", sort=False):
        low, middle, high = own["read"].quantile([0.25, 0.5, 0.75])
        solved_here = int((own["outcome"] == "bar reached").sum())
        reached = 2 * solved_here > len(own)
        outcome = "bar reached" if reached else "training ended without the bar"
        shown = f"{'' if reached else 'more than '}{formats.si(middle)}, median of {len(own)} seeds"
        medians.append([layout, f"{len(own)} seeds", middle, outcome, shown, low, high])
    return pd.DataFrame(medians, columns=["layout", "seed", "read", "outcome", "shown", "low", "high"])


def _solve_figure(
    run: RunData, rows: pd.DataFrame, number: int, variant: str, bar: str, counts: dict[str, str]
) -> Figure:
    style = Style(run.layouts, legend=None)
    names = [name for name in run.layouts if name in set(rows["layout"])]
    pooled = "low" in rows
    least, most = (rows["low"], rows["high"]) if pooled else (rows["read"], rows["read"])
    low, high = least.min() / 1.2, most.max() * 1.1
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
    quartiles = alt.Chart(rows).mark_rule(strokeWidth=1.5).encode(y=y, color=style.colour(), opacity=style.emphasis)
    spans = [quartiles.encode(x=alongside(x, "low"), x2="high:Q")] if pooled else []
    chart = alt.layer(*spans, marks, base.encode(x=alt.value(WIDTH), y=y, text="text:N"))
    chart = chart.properties(width=WIDTH, height=_ROW * len(names))
    title = titled("Tokens to solve", variant)
    caption = (
        "How much each seed had read when it first reached the bar on data that was held out; a triangle is a seed "
    )
    caption += "whose training ended without it."
    if pooled:
        caption = (
            "How much the seeds of a layout had read when they first reached the bar on data that was held out: a "
        )
        caption += (
            "mark is their median, the bar beside it goes from the first to the third quartile. Seeds that ended "
        )
        caption += "without the bar count as what they read. Each by itself is in tables/training.csv."
    text = "; ".join(f"{r.layout}, {'' if pooled else 'seed '}{r.seed}: {r.shown}" for r in rows_of(rows)) + "."
    each = "median and quartiles over the seeds" if pooled else "one mark for each seed"
    subtitle = f"bar: {bar}; {each}, further left is sooner"
    quartile = {"low": "first quartile", "high": "third quartile"} if pooled else {}
    named = {"layout": "layout", "seed": "seeds" if pooled else "seed", "read": "tokens read", "outcome": "outcome"}
    data = in_words(rows, {**named, **quartile})
    return Figure(numbered("solve", number), title, caption, text, finish(chart, title, subtitle), data)


def _solve_table(run: RunData, name: str, variant: str, found: list[Trained]) -> Table:
    rows = [_solve_row(run, status.layout, status.short, own) for status, own in found]
    bar = formats.listing(list(dict.fromkeys(status.bar for status, _ in found)))
    title = f"Tokens to solve: {bar}{in_brackets(variant)}"
    columns = ["Layout", "Taught", "Median", "Each seed", "Chosen by tuning", "Time of a training"]
    note = (
        "Tokens read when the bar was first reached on held-out data. >: the training ended without the bar. The "
        "median counts those as longer than all others."
    )
    return Table(name, title, columns, rows, note)


def _solve_row(run: RunData, layout: str, short: str, own: pd.DataFrame) -> list[str]:
    each = [_seed_tokens(r) for r in rows_of(own)]
    reached = own["tokens_to_solve"].astype(float).fillna(float("inf"))
    median = reached.median()
    middle = formats.si(median) if median != float("inf") else NOT_TAUGHT if reached.min() == median else "not reached"
    chosen = formats.listing([text for text in dict.fromkeys(own["chosen"]) if text]) or formats.NOTHING
    if len(each) > MOST_SEEDS:
        least, most = (
            formats.si(end) if end != float("inf") else "not reached" for end in (reached.min(), reached.max())
        )
        each = [f"{least} to {most}, of {len(own)} seeds"]
    return [layout, short, middle, ", ".join(each), chosen, _time(run, own)]


def _time(run: RunData, own: pd.DataFrame) -> str:
    """The median time of a training; where they ran on several kinds of machines, that on each."""
    taken = own["seconds"].astype(float)
    if not run.kinds:
        return formats.seconds(taken.median())
    by_kind = taken.groupby(own["case"].map(run.kinds), sort=False).median()
    return "; ".join(f"{formats.seconds(median)} on {kind}" for kind, median in by_kind.items())


def _seed_tokens(row: Any) -> str:
    if row.status != "ok":
        return row.status.replace("_", " ")
    solved = not formats.missing(row.tokens_to_solve)
    return formats.si(row.tokens_to_solve) if solved else f"> {formats.si(row.tokens)}"


def _training_table(run: RunData) -> Table:
    training = run["training"]
    columns = ["Layout", "For", "Seed", "Lengths", "Loads", "Chosen", "Steps", "Tokens", "Time", "First loss"]
    columns += ["Last loss", "Bar"]
    rows = [
        [
            r.layout,
            f"{r.measure}{in_brackets(r.variant)}",
            str(r.seed),
            _span(r.lengths),
            _span(r.loads),
            r.chosen or formats.NOTHING,
            formats.whole(r.steps),
            formats.si(r.tokens),
            formats.seconds(r.seconds),
            formats.NOTHING if formats.missing(r.first_loss) else f"{r.first_loss:.3f}",
            formats.NOTHING if formats.missing(r.last_loss) else f"{r.last_loss:.3f}",
            _outcome(r),
        ]
        for r in rows_of(training)
    ]
    note = "Losses in nats per scored token. Bar: the accuracy on held-out data at the end, where it passed."
    if "peak_bytes" in training:
        columns = [*columns, "Peak memory"]
        rows = [[*row, formats.bytes_(peak)] for row, peak in zip(rows, training["peak_bytes"])]
        note += " Peak memory: the most that the processes of a training held together."
    if run.kinds:
        columns, rows = [*columns, "Machine"], [[*row, run.kinds[case]] for row, case in zip(rows, training["case"])]
    return Table("training", "What was trained", columns, rows, note, text_columns=2)


def _outcome(row: Any) -> str:
    """What became of a training: `passed with 97.3 %`, `not taught`, its failure, or a dash without a bar."""
    if row.status != "ok":
        return row.status.replace("_", " ")
    if row.passed is None or pd.isna(row.passed):
        return formats.NOTHING
    return f"passed with {formats.percent(row.reached)}" if row.passed else NOT_TAUGHT


def _span(values: list[int]) -> str:
    """`48 to 256`; a dash if there is none."""
    ends = [formats.whole(v) for v in (values[0], values[-1])] if values else [formats.NOTHING]
    return ends[0] if ends[0] == ends[-1] else " to ".join(ends)


def _changed(layout: str, variant: str, old: pd.DataFrame, new: pd.DataFrame) -> Iterator[Change]:
    where: dict[str, Any] = {"measure": "training", "layout": layout}
    passed = [{int(r.seed): bool(r.passed) for r in rows_of(rows)} for rows in (old, new)]
    shown = [f"{sum(seeds.values())} of {len(seeds)}" for seeds in passed]
    found = change.of_difference(compare_successes(passed[1], passed[0]))
    yield Change(**where, what=f"seeds taught{in_brackets(variant)}", before=shown[0], after=shown[1], **found)
    solved = [
        {int(r.seed): float(r.tokens_to_solve) for r in rows_of(rows.dropna(subset=["tokens_to_solve"]))}
        for rows in (old, new)
    ]
    if not solved[0].keys() & solved[1].keys():
        return
    fields = change.of_seeds(*solved)
    shared = passed[0].keys() & passed[1].keys()
    left = sorted(seed for seed in shared if not all(seed in times for times in solved))
    if left:  # those that took longest are the ones without a number, so the rest proves nothing
        fields |= {"p_value": float("nan")}
    yield Change(
        **where,
        what=f"tokens to solve{in_brackets(variant)}",
        unit="tokens",
        before=formats.si(change.mean(*solved)),
        after=formats.si(change.mean(*reversed(solved))),
        note=f"seeds {formats.listing([str(s) for s in left])} did not solve it in both" if left else "",
        **fields,
    )
