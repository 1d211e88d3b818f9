"""The tables of recall: the cell of the verdict, pairs of layouts, then length, load, passes, seeds and depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from . import formats
from .claims import compare_pairs
from .formats import percent_interval
from .inference import LEAST_SEEDS
from .recall import Cell, Recall, asked
from .statistics import Interval, rows_of
from .table import Table, in_brackets, numbered, tokens
from .tables import RunData
from .taught import NOT_TAUGHT, load_text, of_needles

_STATE = "State: bytes that one sequence keeps, after reading it."
_NOTE = f"Accuracy over the taught seeds with its 95 % interval. {_STATE}"


def recall_tables(run: RunData) -> Iterator[Table]:
    """Every table of recall; the names of those of a second experiment end in `-2`."""
    makers = (_headline, _pairs, _by_length, _by_load, _by_passes, _by_seed, _by_depth, _recent)
    counts: dict[str, int] = {}
    for make in makers:
        for recall in asked(run):
            for table in make(run, recall):
                number = counts.get(table.name, 0)
                counts[table.name] = number + 1
                yield replace(table, name=numbered(table.name, number))


def _headline(run: RunData, recall: Recall) -> Iterator[Table]:
    cell = recall.headline
    estimates = {r.layout: r for r in rows_of(recall.at(cell))}
    rows = []
    for layout, status in recall.taught.items():
        found = estimates.get(layout)
        if found is None:
            numbers = [recall.missing_text(layout, cell.length), formats.NOTHING, formats.NOTHING]
        else:
            spread = f"{formats.percent(found.seed_low)} to {formats.percent(found.seed_high)}"
            numbers = [_accuracy(found), spread, formats.bytes_(found.state_bytes)]
        rows.append([layout, status.short, *numbers])
    title = f"{recall.noun}: {cell.text(recall.task)}{in_brackets(recall.variant)}"
    columns = ["Layout", "Taught", "Accuracy", "Least and greatest seed", "State"]
    yield Table("recall-headline", title, columns, rows, _note(recall))


def _pairs(run: RunData, recall: Recall) -> Iterator[Table]:
    cell = recall.headline
    layouts = list(recall.at(cell)["layout"])
    if len(layouts) < 2:
        return
    answers = recall.answers_at(cell)
    found = {(d.first, d.second): d for d in compare_pairs({name: answers[name] for name in layouts})}

    def text(row: str, column: str) -> str:
        pair = found.get((row, column))
        if pair is None:
            return ""
        return f"{_points(pair.difference)} [{_points(pair.low)}, {_points(pair.high)}] {pair.verdict}"

    rows = [[row, *(text(row, column) for column in layouts[1:])] for row in layouts[:-1]]
    title = f"Paired differences: {cell.text(recall.task)}{in_brackets(recall.variant)}"
    note = (
        "Percentage points by which the layout of the row lies above that of the column, on the same examples and "
        "seeds, with the 95 % interval of each; the verdict is corrected for the number of pairs (Holm)."
    )
    yield Table("recall-pairs", title, ["Layout, minus", *layouts[1:]], rows, note)


def _by_length(run: RunData, recall: Recall) -> Iterator[Table]:
    top = recall.headline
    lengths = sorted({*recall.cells["length"], *(length for _, length in recall.failed)})
    for load in sorted(recall.cells["load"].unique(), reverse=True):
        own = recall.where(load=load, passes=top.passes, memory=top.memory)
        rows = _rows(recall, own, "length", lengths, _accuracy)
        title = f"{recall.noun}, by length{_of_load(recall, load)}{in_brackets(recall.variant)}"
        columns = ["Layout, tokens", *(f"{n:,}" for n in lengths)]
        yield _beside_states(Table("recall-by-length", title, columns, rows, _note(recall)), own)


def _by_load(run: RunData, recall: Recall) -> Iterator[Table]:
    top, loads = recall.headline, sorted(recall.cells["load"].unique())
    if len(loads) < 2:
        return
    for length in dict.fromkeys(cell.length for _, cell in recall.claimed):
        own = recall.where(length=length, passes=top.passes, memory=top.memory)
        rows = _rows(recall, own, "load", loads, _accuracy, length)
        title = f"{recall.noun} at {tokens(length)}, by load{in_brackets(recall.variant)}"
        first = "Layout, needles" if of_needles(recall.task) else "Layout, load"
        columns = [first, *(f"{n:,}" for n in loads)]
        yield _beside_states(Table("recall-by-load", title, columns, rows, _note(recall)), own)


def passes_cell(recall: Recall) -> Cell:
    """The headline, with the greatest load for which the most passes and memories were asked there."""
    top = recall.headline
    here = recall.where(length=top.length)
    kinds = here.groupby("load")[["passes", "memory"]].apply(lambda own: len(own.drop_duplicates()))
    return replace(top, load=int(kinds[kinds == kinds.max()].index.max()))


def _by_passes(run: RunData, recall: Recall) -> Iterator[Table]:
    cell = passes_cell(recall)
    own = recall.where(length=cell.length, load=cell.load)
    kinds = sorted(set(zip(own["memory"], own["passes"])))
    if len(kinds) < 2:
        return
    own = own.assign(kind=pd.Series([*zip(own["memory"], own["passes"])], own.index, dtype=object))
    rows = _rows(recall, own, "kind", kinds, _accuracy, cell.length)
    where = replace(cell, passes=1, memory="fresh").text(recall.task)
    title = f"{recall.noun}, by passes and memory: {where}{in_brackets(recall.variant)}"
    note = (
        "Fresh: each sequence starts with an empty memory. Persistent: memories are kept from sequence to sequence. "
        f"Between two passes memories are kept and everything else is dropped. {_note(recall)}"
    )
    columns = ["Layout", *(f"{memory}, {passes} pass{'es' if passes > 1 else ''}" for memory, passes in kinds)]
    yield _beside_states(Table("recall-by-passes", title, columns, rows, note), own)


def _by_seed(run: RunData, recall: Recall) -> Iterator[Table]:
    top, answers = recall.headline, recall.answers
    if answers["seed"].nunique() < 2:
        return
    own = answers[(answers["load"] == top.load) & (answers["passes"] == top.passes) & (answers["memory"] == top.memory)]
    lengths = sorted({*own["length"], *(length for _, length in recall.failed)})
    cells = {(r.layout, r.seed, r.length): formats.percent(r.hits.share) for r in rows_of(own)}
    failed = run["failed_lengths"][run["failed_lengths"]["variant"] == recall.variant]
    cells |= {(r.layout, r.seed, r.length): r.status.replace("_", " ") for r in rows_of(failed)}
    training = run["training"][
        (run["training"]["variant"] == recall.variant) & (run["training"]["measure"] == "recall")
    ]
    rows, names = [], []
    for trained in rows_of(training):
        untaught = trained.passed is False or trained.status != "ok"
        without = NOT_TAUGHT if untaught else formats.NOTHING
        texts = [cells.get((trained.layout, trained.seed, n), without) for n in lengths]
        rows.append([f"{trained.layout}, seed {trained.seed}", *texts])
        names.append(trained.layout)
    title = f"{recall.noun}, each seed by itself{_of_load(recall, top.load)}{in_brackets(recall.variant)}"
    note = f"How far the seeds lie apart is what one training may change. {_STATE}"
    columns = ["Layout, tokens", *(f"{n:,}" for n in lengths)]
    states = recall.where(load=top.load, passes=top.passes, memory=top.memory)
    yield _beside_states(Table("recall-by-seed", title, columns, rows, note), states, names)


def _by_depth(run: RunData, recall: Recall) -> Iterator[Table]:
    top = recall.headline
    own = counted(run, recall, recent=False)
    own = own[(own["length"] == top.length) & (own["load"] == top.load)].dropna(subset=["depth"])
    if len(own):
        depths = sorted(own["depth"].unique())
        rows = _rows(recall, own, "depth", depths, lambda r: formats.percent(r.accuracy), top.length)
        title = f"{recall.noun}, by depth: {top.text(recall.task)}{in_brackets(recall.variant)}"
        note = f"0 % is the beginning of the context, 100 % right before the questions. Taught seeds pooled. {_STATE}"
        columns = ["Layout, depth", *(f"from {100 * d:.0f} %" for d in depths)]
        yield _beside_states(Table("recall-by-depth", title, columns, rows, note), recall.at(top))


def _recent(run: RunData, recall: Recall) -> Iterator[Table]:
    own = counted(run, recall, recent=True)
    own = own[own["load"] == recall.headline.load]
    if len(own):
        pooled = own.groupby(["layout", "length"], sort=False, as_index=False)[["correct", "total"]].sum()
        lengths = sorted(pooled["length"].unique())
        rows = _rows(recall, pooled, "length", lengths, lambda r: f"{r.correct:,} of {r.total:,}")
        of = _of_load(recall, recall.headline.load)
        title = f"Recent answers, counted apart{of}{in_brackets(recall.variant)}"
        note = (
            "What stood so close to its question that a memory that works in chunks has not written it yet; "
            f"these are in no other table or chart. {_STATE}"
        )
        columns = ["Layout, tokens", *(f"{n:,}" for n in lengths)]
        table = Table("recall-recent", title, columns, rows, note)
        yield _beside_states(table, recall.where(load=recall.headline.load))


def counted(run: RunData, recall: Recall, recent: bool) -> pd.DataFrame:
    """Counts and `accuracy` by layout, length, load and depth, taught seeds pooled, read as in the headline."""
    top = recall.headline
    own = run["recall"][(run["recall"]["variant"] == recall.variant) & (run["recall"]["recent"].astype(bool) == recent)]
    own = own.assign(load=own["load"].astype(float).fillna(0).astype(int), memory=own["memory"].fillna("fresh"))
    own = own[(own["passes"] == top.passes) & (own["memory"] == top.memory)]
    keys = ["layout", "length", "load", "depth"]
    sums = own.groupby(keys, sort=False, as_index=False, dropna=False)[["correct", "total"]].sum()
    return sums.assign(accuracy=sums["correct"] / sums["total"])


def _rows(
    recall: Recall,
    own: pd.DataFrame,
    across: str,
    values: list[Any],
    cell: Callable[[Any], str],
    length: int | None = None,
) -> list[list[str]]:
    """One row for every layout, taught or not; length: where the columns are not lengths, that of all of them."""
    cells = {(r.layout, getattr(r, across)): r for r in rows_of(own)}
    rows = []
    for layout in recall.taught:
        texts = []
        for value in values:
            where = length or (value if across == "length" else None)
            found = cells.get((layout, value))
            failed = recall.failed.get((layout, where)) if where else None
            if found is None:
                texts.append(recall.missing_text(layout, where))
            else:
                texts.append(f"{cell(found)} ({failed})" if failed else cell(found))
        rows.append([layout, *texts])
    return rows


def _accuracy(row: Any) -> str:
    return percent_interval(Interval(row.accuracy, row.low, row.high))


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _note(recall: Recall) -> str:
    few = recall.cells[recall.cells["kind"] != "new seeds"]["layout"].unique()
    if not len(few):
        return _NOTE
    whose = "" if len(few) == recall.cells["layout"].nunique() else f" of {formats.listing(list(few))}"
    return f"{_NOTE} With fewer than {LEAST_SEEDS} seeds the intervals{whose} hold for these trained models alone."


def _of_load(recall: Recall, load: int) -> str:
    return f": {load_text(load, recall.task)}" if load else ""


def _beside_states(table: Table, cells: pd.DataFrame, layouts: list[str] | None = None) -> Table:
    """`table` with a second column: `33.3 kB`, or `262 kB to 8.39 MB` of a state that grows with the length.

    cells: estimates with the lengths of the table. layouts: those of the rows, where the first column names more.
    """
    states = {name: own["state_bytes"].dropna() for name, own in cells.groupby("layout")}

    def text(layout: str) -> str:
        held = states.get(layout)
        if held is None or not len(held):
            return formats.NOTHING
        low, high = formats.bytes_(held.min()), formats.bytes_(held.max())
        return low if low == high else f"{low} to {high}"

    names = layouts or [row[0] for row in table.rows]
    rows = [[row[0], text(name), *row[1:]] for name, row in zip(names, table.rows)]
    return replace(table, columns=[table.columns[0], "State", *table.columns[1:]], rows=rows)
