"""The tables of what stands behind the numbers: models, backends, and what the doctor found out."""

from __future__ import annotations

from collections.abc import Iterator

from . import formats
from .forecast import forecast_tables
from .machines import machine_of
from .statistics import rows_of
from .table import Table
from .tables import RunData


def page_tables(run: RunData) -> Iterator[Table]:
    """All tables of the page, in its order."""
    for section in run.sections:
        yield from section.tables(run)
    yield from about_tables(run)


def about_tables(run: RunData) -> Iterator[Table]:
    yield from _machine_tables(run)
    yield from _attempt_tables(run)
    yield from _mixer_tables(run)
    yield from _model_tables(run)
    yield from _backend_tables(run)
    yield from _doctor_tables(run)
    yield from forecast_tables(run)


def _machine_tables(run: RunData) -> Iterator[Table]:
    """The machines that took part, where there are several."""
    said = run.environment.get("machines") or {}
    names = sorted({*said, *run.machines}, key=lambda name: (-len(run.machines.get(name, [])), name))
    if len(names) < 2:
        return
    whole = sum(line.seconds for own in run.machines.values() for line in own)
    rows = []
    for name in names:
        own, known = run.machines.get(name, []), said.get(name) or {}
        kind = machine_of(own[0])["kind"] if own else str(known.get("kind") or formats.NOTHING)
        spent = sum(line.seconds for line in own)
        share = formats.percent(spent / whole) if whole else formats.NOTHING
        held = formats.bytes_(known.get("memory_bytes"))
        rows.append([name, kind, held, formats.whole(len(own)), formats.seconds(spent), share])
    columns = ["Machine", "Kind", "Memory", "Cases", "Time of its cases", "Share of the time"]
    note = (
        "What was timed is compared within one kind only. What models recall does not depend on the machine, but for "
    )
    note += "rounding: two kinds may add the same numbers in another order."
    rest = len(run.lines) - sum(map(len, run.machines.values()))
    note += f" Of {formats.whole(rest)} cases the machine is not known." if rest else ""
    yield Table("machines", "Machines", columns, rows, note, text_columns=2)


def _attempt_tables(run: RunData) -> Iterator[Table]:
    """What was lost with a machine, and run again."""
    rows = [
        [
            r.layout,
            r.measure,
            r.what or r.case,
            str(r.seed),
            str(r.machine or "not known"),
            formats.seconds(r.seconds),
            str(r.ended or formats.NOTHING),
            str(r.why),
        ]
        for r in rows_of(run["attempts"].astype({"seconds": float}))
    ]
    if rows:
        columns = ["Layout", "Measure", "Case", "Seed", "Machine", "Lost after", "At", "Why"]
        note = "Attempts at cases that came to nothing because a machine was lost. Each was run again, or is listed "
        note += "under failures."
        yield Table("attempts", "Lost attempts", columns, rows, note, text_columns=3)


def _mixer_tables(run: RunData) -> Iterator[Table]:
    """What the mixers of a run are, and where they are from, by their cards."""
    cards = run.environment.get("cards") or {}
    rows = [
        [str(name), *(str(card.get(key) or formats.NOTHING) for key in ("family", "summary", "paper", "year"))]
        for name, card in cards.items()
    ]
    if rows:
        columns = ["Mixer", "Family", "Summary", "Paper", "Year"]
        yield Table("mixers", "The mixers", columns, rows, text_columns=4)


def _model_tables(run: RunData) -> Iterator[Table]:
    if len(run["models"]):
        lengths = sorted({int(n) for n in run["models"]["flops_length"].dropna()})
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
            for r in rows_of(run["models"])
        ]
        note = (
            "FLOPs of a forward pass. Matched: what the feed-forward width was adjusted to keep equal, within 1 %. "
            "A dash: left to the default, or not counted in this run."
        )
        yield Table("models", "The models", columns, rows, note, text_columns=2)


def _backend_tables(run: RunData) -> Iterator[Table]:
    if len(run["backends"]):
        keys = ["layout", "op", "backends", "device"]
        merged = run["backends"].groupby(keys, sort=False, as_index=False)[["measure"]].agg(", ".join)
        rows = [[r.layout, r.op, r.backends, r.device, r.measure] for r in rows_of(merged)]
        note = "The implementation behind every number."
        columns = ["Layout", "Op", "Backend", "Device", "Measures"]
        yield Table("backends", "What ran", columns, rows, note, text_columns=5)


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
        yield Table("doctor", "Backends proven on this machine", columns, rows, note, text_columns=9)
