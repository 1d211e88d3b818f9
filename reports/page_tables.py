"""The tables of the page, layouts as rows. Those of learning and of recall have files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from . import formats, op_speed
from .formats import mode_name
from .recall_tables import recall_tables
from .statistics import pool_perplexity, pool_speed, rows_of
from .table import Table, each, in_brackets, tokens, wide
from .tables import RunData
from .taught import NOT_TAUGHT
from .taught_tables import taught_tables


def page_tables(run: RunData) -> list[Table]:
    """The tables of the page, in its order."""
    measured = (_speed_tables, _memory_tables, _state_tables, _ratio_tables, _op_speed_tables, _perplexity_tables)
    about = (_training_tables, _model_tables, _backend_tables, _doctor_tables)
    makers = (taught_tables, recall_tables, *measured, *about)
    return [table for make in makers for table in make(run)]


def _speed_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant, mode), rows in each(run.speed, "variant", "mode"):
        pooled = pool_speed(rows, ["layout", "length"])
        name, decoding = mode_name(mode), mode == "decode"

        def cell(r: Any, decoding: bool = decoding) -> str:
            each = f", {formats.seconds(r.seconds)}" if decoding else ""
            return f"{formats.si(r.tokens_per_second)} [{formats.si(r.low)}, {formats.si(r.high)}]{each}"

        columns, cells = wide(pooled, "length", cell)
        title = (
            f"Speed, {name}: tokens per second{', and seconds of a token' if decoding else ''}{in_brackets(variant)}"
        )
        note = f"Median [first, third quartile] of at least {pooled['rounds'].min()} rounds."
        yield Table(f"speed{suffix}", "speed", title, columns, cells, note + _compiled(rows))


def _compiled(rows: pd.DataFrame) -> str:
    """What torch.compile took, where it was asked for; none of the seconds that are shown."""
    known = rows[["compile_seconds", "graph_breaks"]].dropna()
    if known.empty:
        return ""
    seconds, breaks = known.max()
    took, found = formats.seconds(seconds), formats.whole(breaks)
    return f" Before, torch.compile took at most {took}; graph breaks: {found} at most."


def _memory_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant, mode), rows in each(run.memory.dropna(subset=["peak_bytes"]), "variant", "mode"):
        columns, cells = wide(rows, "length", lambda r: formats.bytes_(r.peak_bytes))
        title = f"Peak memory above the resident model, {mode_name(mode)}{in_brackets(variant)}"
        methods = formats.listing(sorted({str(m) for m in rows["method"].dropna()}))
        yield Table(f"peak-memory{suffix}", "memory", title, columns, cells, f"How bytes were read: {methods}.")


def _state_tables(run: RunData) -> Iterator[Table]:
    if len(run.states):
        columns, cells = wide(run.states, "length", lambda r: formats.bytes_(r.state_bytes))
        yield Table("state", "memory", "State of one sequence", columns, cells, "After reading that many tokens.")


def _ratio_tables(run: RunData) -> Iterator[Table]:
    if len(run.op_ratios):
        held = run.op_ratios.sort_values("bar", key=pd.isna, kind="stable")  # those with a bar first
        rows = [
            [
                f"{op_speed.topic(r)}{in_brackets(r.variant)}",
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
                f"{mode_name(r.mode)}, {tokens(r.tokens)}{in_brackets(r.variant)}",
                r.layout,
                f"{r.op}: {r.backend}",
                formats.whole(r.batch),
                f"{formats.seconds(r.seconds)} [{formats.seconds(r.seconds_low)}, {formats.seconds(r.seconds_high)}]",
                formats.seconds(r.seconds / r.units),
                formats.bytes_(r.peak_bytes),
                formats.bytes_(r.floor_bytes),
                formats.si(r.seconds / r.floor_seconds),
                formats.whole(r.rounds),
                r.ran or formats.NOTHING,
            ]
            for r in rows_of(run.op_speed)
        ]
        columns = ["What", "Layout", "Backend", "Batch", "Seconds", "A token", "Peak", "Floor", "Times floor", "Rounds"]
        columns += ["Ran"]
        rates = sorted(run.op_speed["copy_bandwidth"].dropna().unique())
        copied = formats.listing([f"{formats.bytes_(rate)}/s" for rate in rates])
        methods = formats.listing(sorted({str(m) for m in run.op_speed["method"].dropna()}))
        note = (
            "Seconds of a call, in decoding of a token: median [first, third quartile]. Peak: bytes above what was "
            f"there before the call; how they were read: {methods}."
        )
        note += _compiled(run.op_speed)
        if rates:
            note += f" Floor: bytes that must be moved; as time at the rate of a copy in the same case: {copied}."
        yield Table("op-speed", "op-speed", "What ran in turn, in one process", columns, rows, note, 3)


def _perplexity_tables(run: RunData) -> Iterator[Table]:
    for suffix, (variant,), rows in each(run.perplexity, "variant"):
        pooled = pool_perplexity(rows, ["layout", "end"])
        columns, cells = wide(
            pooled, "end", lambda r: f"{r.bits_per_byte:.3f}", lambda end: f"up to {end:,}", "Layout, position"
        )
        whole = {r.layout: r for r in rows_of(pool_perplexity(rows, ["layout"]))}
        cells = [[*row, f"{whole[row[0]].bits_per_byte:.3f}", _seeds(whole[row[0]])] for row in cells]
        title = f"Bits per byte, by position in the text{in_brackets(variant)}"
        note = "Mean of the seeds; lower is better."
        yield Table(f"perplexity{suffix}", "perplexity", title, [*columns, "all", "Seeds"], cells, note)


def _seeds(row: Any) -> str:
    """`3: 2.001 to 2.013`."""
    return "one" if row.seeds == 1 else f"{row.seeds}: {row.seed_low:.3f} to {row.seed_high:.3f}"


def _training_tables(run: RunData) -> Iterator[Table]:
    if len(run.training):
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
            for r in rows_of(run.training)
        ]
        note = "Losses in nats per scored token. Bar: the accuracy on held-out data at the end, where it passed."
        yield Table("training", "training", "What was trained", columns, rows, note, text_columns=2)


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


def _doctor_tables(run: RunData) -> Iterator[Table]:
    """What `mixerzoo doctor` found out where the run was made."""
    found = run.environment.get("doctor") or {}
    rows = [
        [
            r["op"],
            r["backend"],
            r["variant"],
            r["dtype"],
            ", ".join(map(str, r["widths"])),
            r["outcome"],
            r["backward"] or formats.NOTHING,
            f"{r['chosen'][0]} of {r['chosen'][1]}" if r["chosen"][1] else formats.NOTHING,
            r["detail"],
        ]
        for r in found.get("rows", [])
    ]
    rows += [
        [op, name, *[""] * 3, "cannot run", *[formats.NOTHING] * 2, why]
        for op, name, why in found.get("unavailable", [])
    ]
    if rows:
        columns = ["Op", "Backend", "Variant", "Dtype", "Head sizes", "Result", "Backward", "Fastest", "Reason"]
        note = (
            "By mixerzoo doctor, against float64. auto takes a backend only where it is right, and faster than the "
            "portable code: in so many of the lengths, with and without gradients, that were timed."
        )
        yield Table("doctor", "models", "Backends proven on this machine", columns, rows, note, text_columns=9)
