"""The numbers as people read them: one summary for machines, and tables with layouts as rows for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from . import formats, op_speed
from .formats import mode_name
from .statistics import Interval, pool_perplexity, pool_recall, pool_speed, rows_of
from .tables import RunData
from .verdict import common_length, headline_recall

SUMMARY = ["layout", "measure", "variant", "quantity", "mode", "length", "value", "low", "high"]
SUMMARY += ["interval", "unit", "count", "seeds", "backends"]


@dataclass(frozen=True)
class Table:
    """A table of a report, its cells as text; the first column names the row.

    text_columns: how many columns from the left hold words; numbers, in the others, stand at the right of theirs.
    """

    name: str
    section: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    text_columns: int = 1

    def csv(self) -> str:
        """As CSV, quoted where needed."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def summary(run: RunData) -> pd.DataFrame:
    """Every pooled number of the run, one a row, with its interval, unit and the backends that ran."""
    makers = (_recall_numbers, _speed_numbers, _memory_numbers, _perplexity_numbers, _op_speed_numbers)
    rows = [number for make in makers for number in make(run)]
    return pd.DataFrame(rows, columns=SUMMARY)


def page_tables(run: RunData) -> list[Table]:
    """The tables of the page, in its order."""
    recall = (_recall_tables, _seed_tables, _passes_tables, _recent_tables, _depth_tables)
    others = (
        _speed_tables,
        _memory_tables,
        _state_tables,
        _ratio_tables,
        _op_speed_tables,
        _perplexity_tables,
        _training_tables,
    )
    makers = (*recall, *others, _model_tables, _backend_tables)
    return [table for make in makers for table in make(run)]


# --- The summary ---


def _ran(frame: pd.DataFrame) -> Callable[[Any], str]:
    """The backends of the rows of `frame` that agree with a pooled row in its layout, variant, mode and length."""
    keys = [k for k in ("layout", "variant", "mode", "length") if k in frame]
    seen = frame.groupby(keys, sort=False, dropna=False)["backends"].agg(lambda texts: " | ".join(dict.fromkeys(texts)))
    return lambda row: seen.get(tuple(getattr(row, k) for k in keys), "")


def _recall_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    rows = headline_recall(run.recall)
    ran = _ran(rows)
    for r in rows_of(pool_recall(rows, ["layout", "variant", "length"])):
        number = {"value": r.accuracy, "low": r.low, "high": r.high, "interval": "95 % Wilson", "unit": "share"}
        where = {"layout": r.layout, "measure": "recall", "variant": r.variant, "length": r.length}
        yield {**where, **number, "quantity": "accuracy", "count": r.total, "seeds": r.seeds, "backends": ran(r)}


def _speed_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    ran = _ran(run.speed)
    for r in rows_of(pool_speed(run.speed, ["layout", "variant", "mode", "length"])):
        where = {"layout": r.layout, "measure": "speed", "variant": r.variant, "mode": r.mode, "length": r.length}
        how = {"interval": "quartiles", "count": r.rounds, "seeds": r.seeds, "backends": ran(r)}
        rate = {"value": r.tokens_per_second, "low": r.low, "high": r.high, "unit": "tokens/s"}
        seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "unit": "s"}
        yield {**where, **how, **rate, "quantity": "tokens_per_second"}
        yield {**where, **how, **seconds, "quantity": "seconds"}


def _memory_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for r in rows_of(run.memory):
        where = {"layout": r.layout, "measure": "memory", "variant": r.variant, "mode": r.mode, "length": r.length}
        for quantity in ("peak_bytes", "model_bytes", "optimizer_bytes", "state_bytes", "activation_bytes_per_token"):
            unit = "B/token" if quantity.endswith("per_token") else "B"
            number = {"quantity": quantity, "value": getattr(r, quantity), "unit": unit}
            yield {**where, **number, "count": 1, "seeds": 1, "backends": r.backends}


def _perplexity_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    ran = _ran(run.perplexity)
    for r in rows_of(pool_perplexity(run.perplexity, ["layout", "variant"])):
        number = {"value": r.bits_per_byte, "low": r.seed_low, "high": r.seed_high, "interval": "range of the seeds"}
        where = {"layout": r.layout, "measure": "perplexity", "variant": r.variant, "unit": "bits/byte"}
        yield {**where, **number, "quantity": "bits_per_byte", "count": r.tokens, "seeds": r.seeds, "backends": ran(r)}


def _op_speed_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for r in rows_of(run.op_speed):
        where = {"layout": r.layout, "measure": r.measure, "variant": r.variant, "mode": r.mode, "length": r.tokens}
        how = {"seeds": 1, "backends": f"{r.op}: {r.backend}"}
        seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "interval": "quartiles"}
        yield {**where, **how, **seconds, "quantity": "seconds", "unit": "s", "count": r.rounds}
        for quantity in ("peak_bytes", "floor_bytes"):
            if not formats.missing(getattr(r, quantity)):
                yield {**where, **how, "quantity": quantity, "value": getattr(r, quantity), "unit": "B", "count": 1}
    for r in rows_of(run.op_ratios):
        where = {"layout": r.layout, "measure": r.measure, "variant": r.variant, "mode": r.mode, "length": r.tokens}
        number = {"quantity": r.kind, "value": r.value, "low": r.low, "high": r.high, "interval": "quartiles"}
        which = " over ".join(name for name in (r.backend, r.over) if isinstance(name, str))
        yield {**where, **number, "unit": "ratio", "count": 1, "seeds": 1, "backends": which}


# --- The tables of the page ---


def _wide(
    frame: pd.DataFrame,
    across: str,
    cell: Callable[[Any], str],
    heading: Callable[[Any], str] = lambda length: f"{length:,}",
    first: str = "Layout, tokens",
) -> tuple[list[str], list[list[str]]]:
    """Layouts down, the values of a column across."""
    values = sorted(frame[across].unique())
    cells = {(r.layout, getattr(r, across)): cell(r) for r in rows_of(frame)}
    layouts = list(dict.fromkeys(frame["layout"]))
    rows = [[name, *(cells.get((name, v), formats.NOTHING) for v in values)] for name in layouts]
    return [first, *(heading(v) for v in values)], rows


def _each(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[str, list[Any], pd.DataFrame]]:
    """Groups of a frame, with a name for the table that tells them apart, and what to add to its title."""
    for number, (key, group) in enumerate(frame.groupby(list(columns), sort=False, dropna=False)):
        yield ("" if number == 0 else f"-{number + 1}"), list(key), group


def _in_brackets(variant: str) -> str:
    return f" ({variant})" if variant else ""


def _accuracy(row: Any) -> str:
    return formats.percent_interval(Interval(row.accuracy, row.low, row.high))


def _tokens(length: int) -> str:
    return f"{length:,} tokens"


def _recall_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in _each(headline_recall(run.recall), "variant"):
        columns, cells = _wide(pool_recall(rows, ["layout", "length"]), "length", _accuracy)
        title = f"Needles recalled, by length of the context{_in_brackets(variant)}"
        note = "Accuracy with its 95 % Wilson interval, seeds pooled, recent needles left out."
        yield Table(f"recall-by-length{suffix}", "recall", title, columns, cells, note)


def _seed_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in _each(headline_recall(run.recall), "variant"):
        if rows["seed"].nunique() < 2:
            continue
        single = pool_recall(rows, ["layout", "seed", "length"])
        single["layout"] = [f"{r.layout}, seed {r.seed}" for r in rows_of(single)]
        columns, cells = _wide(single, "length", lambda r: formats.percent(r.accuracy))
        title = f"Needles recalled, each seed by itself{_in_brackets(variant)}"
        note = "How far the seeds lie apart is what one training may change."
        yield Table(f"recall-by-seed{suffix}", "recall", title, columns, cells, note)


def _passes_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in _each(run.recall[~run.recall["recent"].astype(bool)], "variant"):
        length = common_length(rows)
        rows = rows[rows["length"] == length]
        if rows["passes"].nunique() < 2:
            continue
        columns, cells = _wide(pool_recall(rows, ["layout", "passes"]), "passes", _accuracy, str, "Layout, passes")
        title = f"Needles recalled at {_tokens(length)}, by passes over the context{_in_brackets(variant)}"
        note = "Between two passes memories are kept and everything else is dropped."
        yield Table(f"recall-by-passes{suffix}", "recall", title, columns, cells, note)


def _recent_tables(run: RunData) -> Iterator[Table]:
    recent = run.recall[run.recall["recent"].astype(bool)]
    # after a second reading a recent needle is written too, from the first
    for suffix, (variant,), rows in _each(recent[recent["passes"] == recent["passes"].min()], "variant"):
        columns, cells = _wide(pool_recall(rows, ["layout", "length"]), "length", _accuracy)
        title = f"Recent needles, scored apart{_in_brackets(variant)}"
        note = (
            "Needles so close to the questions that a memory that works in chunks has not written them yet; "
            "they are in no other table or chart."
        )
        yield Table(f"recall-recent{suffix}", "recall", title, columns, cells, note)


def _depth_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in _each(headline_recall(run.recall).dropna(subset=["depth"]), "variant"):
        length = rows["length"].max()
        pooled = pool_recall(rows[rows["length"] == length], ["layout", "depth"])
        columns, cells = _wide(pooled, "depth", _accuracy, lambda d: f"from {100 * d:.0f} %", "Layout, depth")
        title = f"Needles recalled at {_tokens(length)}, by depth{_in_brackets(variant)}"
        note = "0 % is the beginning of the context, 100 % right before the questions."
        yield Table(f"recall-by-depth{suffix}", "recall", title, columns, cells, note)


def _speed_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant, mode), rows in _each(run.speed, "variant", "mode"):
        pooled = pool_speed(rows, ["layout", "length"])
        name, decoding = mode_name(mode), mode == "decode"

        def cell(r: Any, decoding: bool = decoding) -> str:
            each = f", {formats.seconds(r.seconds)}" if decoding else ""
            return f"{formats.si(r.tokens_per_second)} [{formats.si(r.low)}, {formats.si(r.high)}]{each}"

        columns, cells = _wide(pooled, "length", cell)
        title = (
            f"Speed, {name}: tokens per second{', and seconds of a token' if decoding else ''}{_in_brackets(variant)}"
        )
        note = f"Median [first, third quartile] of at least {pooled['rounds'].min()} rounds."
        yield Table(f"speed{suffix}", "speed", title, columns, cells, note)


def _memory_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant, mode), rows in _each(run.memory.dropna(subset=["peak_bytes"]), "variant", "mode"):
        columns, cells = _wide(rows, "length", lambda r: formats.bytes_(r.peak_bytes))
        title = f"Peak memory above the resident model, {mode_name(mode)}{_in_brackets(variant)}"
        methods = formats.listing(sorted({str(m) for m in rows["method"].dropna()}))
        yield Table(f"peak-memory{suffix}", "memory", title, columns, cells, f"How bytes were read: {methods}.")


def _state_tables(run: RunData) -> Iterator[Table]:
    if len(run.states):
        columns, cells = _wide(run.states, "length", lambda r: formats.bytes_(r.state_bytes))
        yield Table("state", "memory", "State of one sequence", columns, cells, "After reading that many tokens.")


def _ratio_tables(run: RunData) -> Iterator[Table]:
    if len(run.op_ratios):
        held = run.op_ratios.sort_values("bar", key=pd.isna, kind="stable")  # those with a bar first
        rows = [
            [
                f"{op_speed.topic(r)}{_in_brackets(r.variant)}",
                r.layout,
                op_speed.number(r),
                op_speed.bar(r),
                op_speed.outcome(r),
            ]
            for r in rows_of(held)
        ]
        columns = ["What", "Layout", "Value", "Bar", "Outcome"]
        note = "Of the medians; in brackets the widest range that the quartiles allow."
        yield Table("op-ratios", "op-speed", "Ratios, and the bars they are held to", columns, rows, note, 2)


def _op_speed_tables(run: RunData) -> Iterator[Table]:
    if len(run.op_speed):
        rows = [
            [
                f"{mode_name(r.mode)}, {_tokens(r.tokens)}{_in_brackets(r.variant)}",
                r.layout,
                f"{r.op}: {r.backend}",
                formats.whole(r.batch),
                f"{formats.seconds(r.seconds)} [{formats.seconds(r.seconds_low)}, {formats.seconds(r.seconds_high)}]",
                formats.seconds(r.seconds / r.units),
                formats.bytes_(r.peak_bytes),
                formats.bytes_(r.floor_bytes),
                formats.si(r.seconds / r.floor_seconds),
                formats.whole(r.rounds),
            ]
            for r in rows_of(run.op_speed)
        ]
        columns = ["What", "Layout", "Backend", "Batch", "Seconds", "A token", "Peak", "Floor", "Times floor", "Rounds"]
        rates = sorted(run.op_speed["copy_bandwidth"].dropna().unique())
        copied = formats.listing([f"{formats.bytes_(rate)}/s" for rate in rates])
        methods = formats.listing(sorted({str(m) for m in run.op_speed["method"].dropna()}))
        note = (
            "Seconds of a call, in decoding of a token: median [first, third quartile]. Peak: bytes above what was "
            f"there before the call; how they were read: {methods}."
        )
        if rates:
            note += f" Floor: bytes that must be moved; as time at the rate of a copy in the same case: {copied}."
        yield Table("op-speed", "op-speed", "What ran in turn, in one process", columns, rows, note, 3)


def _perplexity_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in _each(run.perplexity, "variant"):
        pooled = pool_perplexity(rows, ["layout", "end"])
        columns, cells = _wide(
            pooled, "end", lambda r: f"{r.bits_per_byte:.3f}", lambda end: f"up to {end:,}", "Layout, position"
        )
        means = {r.layout: f"{r.bits_per_byte:.3f}" for r in rows_of(pool_perplexity(rows, ["layout"]))}
        cells = [[*row, means[row[0]]] for row in cells]
        title = f"Bits per byte, by position in the text{_in_brackets(variant)}"
        yield Table(
            f"perplexity{suffix}", "perplexity", title, [*columns, "all"], cells, "Seeds pooled; lower is better."
        )


def _training_tables(run: RunData) -> Iterator[Table]:
    if len(run.training):
        columns = ["Layout", "Measure", "Seed", "Length", "Steps", "Tokens", "Time", "First loss", "Last loss"]
        rows = [
            [
                r.layout,
                f"{r.measure}{_in_brackets(r.variant)}",
                str(r.seed),
                formats.whole(r.trained_on),
                formats.whole(r.steps),
                formats.si(r.tokens),
                formats.seconds(r.seconds),
                f"{r.first_loss:.3f}",
                f"{r.last_loss:.3f}",
            ]
            for r in rows_of(run.training)
        ]
        yield Table(
            "training",
            "training",
            "What was trained",
            columns,
            rows,
            "Losses in nats per scored token.",
            text_columns=2,
        )


def _model_tables(run: RunData) -> Iterator[Table]:
    if len(run.models):
        lengths = sorted({int(n) for n in run.models["flops_length"].dropna()})
        at = f" at {lengths[0]:,} tokens" if lengths else ""
        columns = [
            "Layout",
            "Layout line",
            "Parameters",
            f"FLOPs per token{at}",
            "d_model",
            "Layers",
            "d_ff",
            "Matched",
        ]
        rows = [
            [
                r.layout,
                r.layout_line,
                formats.whole(r.parameters),
                formats.si(r.flops_per_token, "FLOPs"),
                formats.whole(r.d_model),
                formats.whole(r.n_layers),
                formats.whole(r.d_ff),
                r.match if isinstance(r.match, str) else "no",
            ]
            for r in rows_of(run.models)
        ]
        note = (
            "FLOPs of a forward pass. Matched: what the feed-forward width was adjusted to keep equal, within 1 %. "
            "A dash: left to the default, or not counted in this run."
        )
        yield Table("models", "models", "The models", columns, rows, note, text_columns=2)


def _backend_tables(run: RunData) -> Iterator[Table]:
    if len(run.backends):
        keys = ["layout", "op", "backends", "device"]
        merged = run.backends.groupby(keys, sort=False, as_index=False)[["measure"]].agg(", ".join)
        rows = [[r.layout, r.op, r.backends, r.device, r.measure] for r in rows_of(merged)]
        note = "The implementation behind every number."
        columns = ["Layout", "Op", "Backend", "Device", "Measures"]
        yield Table("backends", "models", "What ran", columns, rows, note, text_columns=5)
