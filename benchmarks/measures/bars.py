"""Ratios between what was measured, and the bars that they are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ...mixers.limits import Real

Kind = Literal[
    "faster", "smaller", "growth", "flat", "linear", "fit", "floor", "overhead", "attention", "library", "decoder"
]
AT_LEAST: tuple[Kind, ...] = ("faster", "smaller")  # the other kinds are met by at most the value
FEWEST_LENGTHS = {"growth": 2, "flat": 2, "linear": 2, "fit": 3}  # any two points lie on a line


class Bar(BaseModel):
    """A value that a ratio has to reach (`faster`, `smaller`), or may reach at most (all other kinds).

    kind: `faster`, seconds of `over` divided by those of `backend`, at each length; `smaller`, peak bytes likewise;
    `growth`, the most seconds a token at any length by those at the least length; `flat`, greatest by least seconds a
    token, so that it also counts if tokens become cheaper; `linear`, the most peak bytes a token by those at the least
    length; `fit`, the largest distance of the peak bytes from the line through the lengths, as a share of them;
    `floor`, seconds by those that moving the counted bytes takes; `overhead`, seconds of `backend` by those of `over`;
    `attention`, seconds of a mixer by those of causal softmax attention; `library`, seconds of an op by those of the
    library's function that it calls; `decoder`, seconds of a token by the decoder by those of calling the model.
    mode, backend: of which numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    mode: str
    backend: str
    over: str | None = None
    value: Real = Field(gt=0)


def ratios(rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Every ratio that `rows` allow, with the bar that it is held to, if there is one.

    A row has `backend`, `mode`, `tokens`, `median`, `q1`, `q3` (seconds), `units` (tokens that they are of),
    `peak_bytes` and, if a floor is known, `floor_seconds`. A ratio has `kind`, `mode`, `tokens` (None: of all lengths),
    `backend`, `over`, `value` (of the medians), `low` and `high` (the widest range that the quartiles allow), `bar` and
    `met`, both None without a bar.
    """
    found = [*_between_backends(rows), *_over_lengths(rows), *_over_floor(rows)]
    return [_held_to(ratio, bars) for ratio in found]


def overheads(rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """The ratio of seconds of each row to those of the row after it of the same mode and length; as in `ratios`."""
    return _quotients("overhead", rows, bars)


def library_ratios(rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """As `overheads`, for an op and the library's function that it calls."""
    return _quotients("library", rows, bars)


def decoder_ratios(rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """As `overheads`, for a decoder and the model called for every token."""
    return _quotients("decoder", rows, bars)


def attention_ratios(rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """As `overheads`, for a mixer and the attention after it; and how a decoded token grows with its context."""
    grown = [_held_to(ratio, bars) for ratio in _over_lengths([row for row in rows if row["mode"] == "decode"])]
    return [*_quotients("attention", rows, bars), *grown]


def _quotients(kind: Kind, rows: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    found = []
    for i, ours in enumerate(rows):
        for theirs in rows[i + 1 :]:
            if (ours["mode"], ours["tokens"]) == (theirs["mode"], theirs["tokens"]):
                found.append({**_identity(kind, ours, theirs["backend"]), **_divided(ours, theirs)})
    return [_held_to(ratio, bars) for ratio in found]


def _held_to(ratio: dict[str, Any], bars: Sequence[Bar]) -> dict[str, Any]:
    named = ("kind", "mode", "backend", "over")
    value = next((bar.value for bar in bars if all(getattr(bar, name) == ratio[name] for name in named)), None)
    met = None
    if value is not None:
        met = ratio["value"] >= value if ratio["kind"] in AT_LEAST else ratio["value"] <= value
    return {**ratio, "bar": value, "met": met}


def _between_backends(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each backend against all that follow it."""
    for i, ours in enumerate(rows):
        for theirs in rows[i + 1 :]:
            if (ours["mode"], ours["tokens"]) != (theirs["mode"], theirs["tokens"]):
                continue
            yield {**_identity("faster", ours, theirs["backend"]), **_divided(theirs, ours)}
            if ours["peak_bytes"]:
                quotient = theirs["peak_bytes"] / ours["peak_bytes"]
                yield {**_identity("smaller", ours, theirs["backend"]), **_exact(quotient)}


def _over_lengths(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for backend, mode in dict.fromkeys((row["backend"], row["mode"]) for row in rows):
        own = [row for row in rows if (row["backend"], row["mode"]) == (backend, mode)]
        whole = {**own[0], "tokens": None}
        if len(own) >= FEWEST_LENGTHS["flat"]:
            each = sorted(own, key=lambda row: row["median"] / row["units"])
            shortest = min(own, key=lambda row: row["tokens"])
            yield {**_identity("growth", whole), **_divided(each[-1], shortest, per_unit=True)}
            yield {**_identity("flat", whole), **_divided(each[-1], each[0], per_unit=True)}
        if mode == "decode":  # what a decoded token holds is the state, not its context
            continue
        if len(own) >= FEWEST_LENGTHS["linear"]:
            each_bytes = [row["peak_bytes"] / row["tokens"] for row in sorted(own, key=lambda row: row["tokens"])]
            yield {**_identity("linear", whole), **_exact(max(each_bytes) / max(each_bytes[0], 1e-9))}
        if len(own) >= FEWEST_LENGTHS["fit"]:
            yield {**_identity("fit", whole), **_exact(_distance_from_line(own))}


def _over_floor(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row.get("floor_seconds"):
            value, low, high = (row[name] / row["floor_seconds"] for name in ("median", "q1", "q3"))
            yield {**_identity("floor", row), "value": value, "low": low, "high": high}


def _identity(kind: Kind, row: dict[str, Any], over: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "mode": row["mode"], "tokens": row["tokens"], "backend": row["backend"], "over": over}


def _divided(a: dict[str, Any], b: dict[str, Any], per_unit: bool = False) -> dict[str, float]:
    """Seconds of `a` by those of `b`; per_unit: those of one token each."""
    scale = b["units"] / a["units"] if per_unit else 1.0
    return {
        "value": a["median"] / b["median"] * scale,
        "low": a["q1"] / b["q3"] * scale,
        "high": a["q3"] / b["q1"] * scale,
    }


def _exact(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def _distance_from_line(rows: Sequence[dict[str, Any]]) -> float:
    """The largest residual of the least-squares line of peak bytes against tokens, as a share of the bytes there."""
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    peak = np.array([row["peak_bytes"] for row in rows], dtype=float)
    fitted = np.polynomial.Polynomial.fit(tokens, peak, 1)(tokens)
    return float(np.max(np.abs(fitted - peak) / np.maximum(peak, 1.0)))
