"""One number of two runs and how it changed, with what that allows to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from . import formats
from .inference import ALPHA, Comparison, Kind, compare_seeds, holm, ratio_of_medians

NEAR = 0.01  # bytes within 1 % count as equal: allocators round
Verdict = Literal["regression", "gain", "changed", "equal", "cannot tell"]


@dataclass(frozen=True)
class Change:
    """How one number of a layout changed from one run to another.

    what: of what the number is. before, after: as text. change: what it grew by, as a share of `before`, or as a
    difference of shares if `unit` is "points". low, high: its 95 % interval, nan without one. better: which way is
    better; None if that is not known. p_value: of no change; None for a number that has no chance in it.
    kind: what the interval is about, see `inference.Estimate`. verdict: given by `judged`.
    """

    measure: str
    layout: str
    what: str
    unit: str
    before: str
    after: str
    change: float
    low: float = math.nan
    high: float = math.nan
    better: Literal["more", "less"] | None = "less"
    p_value: float | None = None
    kind: Kind = "nothing"
    note: str = ""
    verdict: Verdict = "cannot tell"

    @property
    def worse(self) -> float:
        """By how much it is worse, negative where it is better; 0 where nobody knows which way is better."""
        return {"less": self.change, "more": -self.change, None: 0.0}[self.better]

    @property
    def text(self) -> str:
        """`+20.1 % seconds [+15.0, +25.3]`, `-3.1 points [-5.0, -1.2]`."""
        of = "points" if self.unit == "points" else f"% {self.unit}"
        ends = "" if math.isnan(self.low) else f" [{_signed(self.low)}, {_signed(self.high)}]"
        return f"{_signed(self.change)} {of}{ends}" if math.isfinite(self.change) else f"from none: {self.after}"


@dataclass(frozen=True)
class Refused:
    """What both runs have and what cannot be compared nevertheless, and why."""

    measure: str
    layout: str
    why: str


def judged(changes: Sequence[Change]) -> list[Change]:
    """Every change with its verdict.

    Of all numbers that can be tested together one is called changed by mistake in at most 5 % of comparisons (Holm's
    correction), and never one whose own interval holds no change.
    """
    tested = {
        i: c.p_value for i, c in enumerate(changes) if c.p_value is not None and c.kind in ("new seeds", "rounds")
    }
    adjusted = holm({i: p for i, p in tested.items() if not math.isnan(p)})
    return [replace(change, verdict=_verdict(change, adjusted.get(i, 1.0))) for i, change in enumerate(changes)]


def _verdict(change: Change, adjusted: float) -> Verdict:
    exact = change.p_value is None
    if change.change == 0 or (exact and abs(change.change) <= NEAR):
        return "equal"
    if not exact and (adjusted > ALPHA or change.low <= 0 <= change.high):
        return "cannot tell"
    return "changed" if change.better is None else "regression" if change.worse > 0 else "gain"


def matched(
    before: pd.DataFrame, after: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[tuple, pd.DataFrame, pd.DataFrame]]:
    """The groups that both frames have, by the values of the columns `by`, in the order of `before`."""
    theirs = _groups(after, by)
    for key, own in _groups(before, by).items():
        if key in theirs:
            yield key, own, theirs[key]


def of_rounds(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Fields of a `Change`: rounds that were taken at different times, so not in turn."""
    return _relative(ratio_of_medians(after, before, paired=False))


def of_seeds(before: Mapping[int, float], after: Mapping[int, float]) -> dict[str, Any]:
    """Fields of a `Change`: one number per seed, paired by seed, relative to the mean before."""
    found = compare_seeds(after, before)
    scale = abs(mean(before, after))
    ends = [(end / scale if scale else math.copysign(math.inf, end)) if end else 0.0 for end in _ends(found)]
    return {**dict(zip(("change", "low", "high"), ends)), "p_value": found.p_value, "kind": found.kind}


def of_exact(before: float, after: float) -> dict[str, Any]:
    """Fields of a `Change`: a number without chance in it."""
    return {"change": 0.0 if before == after else after / before - 1 if before else math.inf, "p_value": None}


def of_difference(found: Comparison) -> dict[str, Any]:
    """Fields of a `Change` in points: a difference after - before of shares."""
    ends = dict(zip(("change", "low", "high"), _ends(found)))
    return {**ends, "p_value": found.p_value, "kind": found.kind, "unit": "points", "better": "more"}


def of_bytes(where: dict[str, Any], what: str, quantity: str, before: float, after: float) -> Change:
    """A change of bytes, or of bytes a token. where: measure, layout and note."""
    name = quantity.removesuffix("_bytes").replace("_", " ")
    unit = "bytes a token" if quantity.endswith("per_token") else "bytes"
    shown = [formats.bytes_(value) for value in (before, after)]
    exact = of_exact(before, after)
    return Change(**where, what=f"{name}, {what}", unit=unit, before=shown[0], after=shown[1], **exact)


def mean(values: Mapping[int, float], shared: Mapping[int, float]) -> float:
    """Mean over the seeds that both have."""
    common = [values[seed] for seed in values if seed in shared]
    return sum(common) / len(common) if common else math.nan


def backends_note(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Says so where other backends ran."""
    ran = [" | ".join(sorted(dict.fromkeys(map(str, rows["backends"])))) for rows in (before, after)]
    return "" if ran[0] == ran[1] else f"backends before: {ran[0] or 'none'}; after: {ran[1] or 'none'}"


def _relative(found: Comparison) -> dict[str, Any]:
    ends = dict(zip(("change", "low", "high"), (end - 1 for end in _ends(found))))
    return {**ends, "p_value": found.p_value, "kind": found.kind}


def _ends(found: Comparison) -> tuple[float, float, float]:
    return found.difference, found.low, found.high


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    """None for a value that is missing, since nan equals nothing."""
    groups: list[tuple[Any, pd.DataFrame]] = (
        list(frame.groupby(list(by), sort=False, dropna=False)) if len(frame) else []
    )
    return {tuple(None if pd.isna(value) else value for value in key): group for key, group in groups}


def _signed(share: float) -> str:
    """`+3.1`: hundredths, with three digits at least."""
    if not math.isfinite(share):
        return formats.NOTHING
    return f"{share * 100:+.1f}".replace("-0.0", "+0.0") if abs(share) < 10 else f"{share * 100:+,.0f}"
