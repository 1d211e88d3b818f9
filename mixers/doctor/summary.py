"""What an examination found, in few rows: for a table, and for the environment of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from ..ops.verdicts import LENGTHS, Error, Key, Verdict, fastest
from .examination import Diagnosis

KINDS = ("forward", "train")


class Row(BaseModel):
    """The verdicts on a backend that agree, over classes of head sizes.

    errors: by what was compared, the worst. speedups: by length and kind, how many times as fast as the fastest
    portable code, the least and the most. chosen: how many of the calls `auto` gives to it, of how many that were
    timed: one for each head size, length and kind.
    """

    op: str
    backend: str
    variant: str
    dtype: str
    widths: list[int]
    outcome: str
    backward: str | None = None
    detail: str = ""
    errors: dict[str, Error] = {}
    speedups: dict[str, dict[str, tuple[float, float]]] = {}
    chosen: tuple[int, int] = (0, 0)


class Findings(BaseModel):
    """All that a page says of an examination; see `Diagnosis`. fastest: by op, how many calls go to which backend."""

    device: str
    machine: dict[str, str | None]
    rows: list[Row]
    unavailable: list[tuple[str, str, str]] = []
    fastest: dict[str, dict[str, int]] = {}


def summarise(diagnosis: Diagnosis, *, every_width: bool = False) -> Findings:
    """The findings; every_width: a row for each class of head sizes."""
    rivals: dict[tuple[str, Key], list[Verdict]] = {}
    for v in diagnosis.verdicts:
        portable = (v.op, v.backend) not in diagnosis.proving
        if v.outcome == "right" or portable:
            rivals.setdefault((v.op, v.key), []).append(v)
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for v in diagnosis.proven:
        same = v.op, v.backend, v.variant, v.dtype, v.outcome, v.backward, every_width and v.width
        # what failed is told apart by what it says, but for the numbers of errors
        said = v.detail if v.outcome == "refused" or v.backward == "refused" else ""
        groups.setdefault((*same, said), []).append(v)
    choices = {about: _choices(found, diagnosis) for about, found in rivals.items()}
    rows = [_row(group, rivals, choices, diagnosis) for group in groups.values()]
    counts: dict[str, Counter[str]] = {}
    for (op, _), found in choices.items():
        counts.setdefault(op, Counter()).update(found.values())
    return Findings(
        device=diagnosis.device,
        machine=diagnosis.machine,
        rows=rows,
        unavailable=diagnosis.unavailable,
        fastest={op: dict(c.most_common()) for op, c in counts.items()},
    )


def _choices(found: Sequence[Verdict], diagnosis: Diagnosis) -> dict[tuple[str, str], str]:
    """What `auto` takes, by length and kind; nothing where nothing was timed."""
    chosen = {}
    for length, tokens in LENGTHS.items():
        for kind in KINDS:
            gradient = kind == "train"
            able = [v for v in found if (v.op, v.backend) not in diagnosis.proving or v.trusted(gradient)]
            name = fastest(able, tokens, gradient)
            if name is not None and any(kind in v.seconds.get(length, {}) for v in able):
                chosen[length, kind] = name
    return chosen


def _row(
    group: Sequence[Verdict],
    rivals: dict[tuple[str, Key], list[Verdict]],
    choices: dict[tuple[str, Key], dict[tuple[str, str], str]],
    diagnosis: Diagnosis,
) -> Row:
    first = group[0]
    ratios: dict[str, dict[str, list[float]]] = {}
    chosen = [c for v in group for c in choices.get((v.op, v.key), {}).values()]
    for v in group:
        portable = [r for r in rivals.get((v.op, v.key), []) if (r.op, r.backend) not in diagnosis.proving]
        for length, kind, seconds in _times(v):
            others = [r.seconds[length][kind] for r in portable if kind in r.seconds.get(length, {})]
            if others:
                ratios.setdefault(length, {}).setdefault(kind, []).append(min(others) / seconds)
    return Row(
        op=first.op,
        backend=first.backend,
        variant=first.variant,
        dtype=first.dtype,
        widths=sorted(v.width for v in group),
        outcome=first.outcome,
        backward=first.backward,
        detail=first.detail,
        errors=_worst(group),
        speedups={n: {k: (min(r), max(r)) for k, r in kinds.items()} for n, kinds in ratios.items()},
        chosen=(chosen.count(first.backend), len(chosen)),
    )


def _times(v: Verdict) -> Iterable[tuple[str, str, float]]:
    return [(length, kind, s) for length, kinds in v.seconds.items() for kind, s in kinds.items() if s > 0]


def _worst(group: Sequence[Verdict]) -> dict[str, Error]:
    worst: dict[str, Error] = {}
    for v in group:
        for name, error in v.errors.items():
            worst[name] = max(worst.get(name, error), error, key=lambda e: e.error / e.limit)
    return worst
