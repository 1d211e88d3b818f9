"""How the ratios of measures that run things in turn are said: what was compared, how much it is, which bar it has."""

from __future__ import annotations

from typing import Any

import pandas as pd

from . import formats
from .formats import mode_name
from .statistics import Interval

AT_LEAST = ("faster", "smaller")  # the bars of other kinds are the most that is allowed


def topic(row: Any) -> str:
    """What a row of ratios compares: `training step of 4,096 tokens: times as fast, torch and reference`."""
    batch = "" if row.batch == 1 else f", batch {formats.whole(row.batch)}"
    what = {
        "faster": f"times as fast, {row.backend} against {row.over}",
        "smaller": f"times less peak memory, {row.backend} against {row.over}",
        "growth": f"most seconds a token by those at the least length, {row.backend}",
        "flat": f"greatest by least seconds a token, {row.backend}",
        "linear": f"most peak memory a token by that at the least length, {row.backend}",
        "fit": f"peak memory off a straight line, {row.backend}",
        "attention": "times the seconds of causal softmax attention alone",
        "overhead": "times the seconds of the same model without what the layout inserts",
        "library": f"times the seconds of the library's function that it calls, {row.backend}",
        "decoder": "times the seconds of calling the model for every token",
        "floor": f"seconds by those that moving the counted bytes takes, {row.backend}",
    }.get(row.kind, f"{row.kind}, {row.backend}")
    return f"{mode_name(row.mode)} {_of_tokens(row)}{batch}: {what}"


def number(row: Any) -> str:
    """The value of a row of ratios, with the range of the quartiles where it has one."""
    if row.kind == "fit":
        return formats.percent(row.value)
    return f"{row.value:.3g}" if row.low == row.high else _interval(Interval(row.value, row.low, row.high))


def bar(row: Any) -> str:
    """`at least 25`; a dash without a bar."""
    if row.bar is None or pd.isna(row.bar):
        return formats.NOTHING
    value = formats.percent(row.bar) if row.kind == "fit" else f"{row.bar:.4g}"
    return f"{'at least' if row.kind in AT_LEAST else 'at most'} {value}"


def outcome(row: Any) -> str:
    """`met` or `not met`; a dash without a bar."""
    return formats.NOTHING if row.met is None or pd.isna(row.met) else "met" if row.met else "not met"


def _of_tokens(row: Any) -> str:
    context = "after" if row.mode == "decode" else "of"
    if row.tokens is not None and not pd.isna(row.tokens):
        return f"{context} {formats.whole(row.tokens)} tokens"
    lengths = sorted(row.lengths)
    return f"{context} {formats.whole(lengths[0])} to {formats.whole(lengths[-1])} tokens"


def _interval(value: Interval) -> str:
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
