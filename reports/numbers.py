"""The numbers of a run as a text quotes them: each function finds one, or a table, and writes it.

The pages of docs/ name these functions where a number of a published run stands, see docs/build_numbers.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from typing import Any

import pandas as pd

from . import formats
from .claims import estimate
from .summary import summary
from .tables import RunData
from .taught import teaching

_WRITE = {"B": formats.bytes_, "s": formats.seconds, "tokens": formats.si, "ratio": lambda value: f"{value:.3g}"}


class NumberError(Exception):
    """The run has no such number, or more than one."""


# --- Looking up ---


_summary = lru_cache(maxsize=16)(summary)


def _matching(frame: pd.DataFrame, layout: str, where: dict[str, Any]) -> pd.DataFrame:
    """The rows of the layouts that a pattern names, with these values in their columns."""
    found = frame[[fnmatchcase(name, layout) for name in frame["layout"]]]
    for column, value in where.items():
        if column not in frame:
            raise NumberError(f"numbers have no {column!r}")
        found = found[found[column] == value]
    if found.empty:
        raise NumberError(f"the run has no such number: {layout}, {where}")
    return found


def _values(run: RunData, layout: Any, quantity: str, part: str = "value", **where: Any) -> list[float]:
    """Of the pooled numbers; where there is a list of layouts, or for a column, in the order of the list."""
    choices = product(*(value if isinstance(value, list) else [value] for value in (layout, *where.values())))
    wanted = [(name, {"quantity": quantity, **dict(zip(where, chosen))}) for name, *chosen in choices]
    return [float(value) for name, here in wanted for value in _matching(_summary(run), name, here)[part]]


def _spread(values: list[str]) -> str:
    """`96.2 to 98.4` of written numbers; one that is alike."""
    ordered = sorted(set(values), key=float)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


# --- Recall ---


def recall(
    run: RunData,
    layout: Any,
    load: Any,
    length: Any,
    passes: Any = 1,
    memory: str = "fresh",
    digits: int = 1,
    to: bool = False,
) -> str:
    """Per cent recalled, without the sign.

    Where a layout (a pattern), load, length or passes is a list, a listing in its order; with `to` the range.
    """
    where = {"load": load, "length": length, "passes": passes, "memory": memory}
    written = [f"{100 * share:.{digits}f}" for share in _values(run, layout, "accuracy", **where)]
    return _spread(written) if to else formats.listing(written)


def recall_seeds(run: RunData, layout: str, load: int, length: int) -> str:
    """Per cent recalled by each taught seed: `99.6, 99.7 and 99.9`, rising."""
    where = {"load": load, "length": length, "passes": 1, "memory": "fresh"}
    own = _matching(run["answers"], layout, where)
    shares = sorted(estimate({seed: hits}).accuracy for seed, hits in zip(own["seed"], own["hits"]))
    return formats.listing([f"{100 * share:.1f}" for share in shares])


def taught(run: RunData, layout: str) -> str:
    """`2 of 3`: seeds of a layout that passed the bar."""
    own = [t for t in teaching(run) if t.layout == layout]
    if len(own) != 1:
        raise NumberError(f"there are {len(own)} trainings of {layout}")
    return f"{own[0].passed} of {own[0].seeds}"


def untaught(run: RunData) -> str:
    """`sliding window and linear attention`: the layouts that were not taught."""
    names = formats.listing([t.layout for t in teaching(run) if t.untaught])
    if not names:
        raise NumberError("every layout was taught: the sentence has nothing to say")
    return formats.markdown(names)


def solve(run: RunData, layout: str) -> str:
    """`0.85 M`: median tokens to solve; `> 2.86 M` where fewer than half of the seeds did."""
    (median,) = _values(run, layout, "tokens_to_solve")
    return f"> {budget(run)}" if formats.missing(median) else formats.si(median)


def budget(run: RunData) -> str:
    """`2.86 M`: the most tokens that a model was taught with."""
    return formats.si(run["training"]["tokens"].max())


def trained(run: RunData, column: str) -> str:
    """The greatest `lengths` or `loads` of the training."""
    return formats.whole(max(value for values in run["training"][column] for value in values))


def asked(run: RunData, column: str) -> str:
    """The greatest `length` or `load` that was asked for."""
    return formats.whole(_matching(_summary(run), "*", {"quantity": "accuracy"})[column].max())


def recall_table(run: RunData, *columns: str) -> str:
    """A row for every layout. columns: `taught`, `tokens to solve`, `64 at 8192` (needles, tokens), `state at 8192`.

    Layouts that were not taught have a row only where a column says so. Empty: it was not asked.
    """
    shown = [t.layout for t in teaching(run) if "taught" in columns or not t.untaught]
    heads = [re.sub(r"\d+", lambda m: formats.whole(int(m[0])), column) for column in columns]
    lines = [["", *heads], ["---", *["---:"] * len(columns)]]
    lines += [[formats.markdown(layout), *(_cell(run, layout, column) for column in columns)] for layout in shown]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(run: RunData, layout: str, column: str) -> str:
    if column in ("taught", "tokens to solve"):
        return {"taught": taught, "tokens to solve": solve}[column](run, layout)
    what, _, length = column.partition(" at ")
    try:
        if what == "state":
            states = _values(run, layout, "state_bytes", length=int(length), memory="fresh")
            return formats.bytes_(states[0])  # the same at every load
        return recall(run, layout, int(what), int(length))
    except NumberError:
        return ""


# --- Any number, and what is held to a bar ---


def number(run: RunData, layout: str, quantity: str, part: str = "value", nth: int | None = None, **where: Any) -> str:
    """One number of summary.csv with its unit.

    part: its `low` or `high` end, its `count` or `seeds`. nth: which, from 0, where it was measured more than once.
    """
    found = _matching(_summary(run), layout, {"quantity": quantity, **where})
    if nth is None and len(found) > 1:
        raise NumberError(f"there are {len(found)} such numbers; narrow them down, or say which with nth")
    row = found.iloc[nth or 0]
    return formats.whole(row[part]) if part in ("count", "seeds") else _WRITE[row["unit"]](row[part])


def times(run: RunData, layout: str, other: str, quantity: str, **where: Any) -> str:
    """How many times the quantity of the other layout that of a layout is, as a whole number."""
    (ours,), (theirs,) = _values(run, layout, quantity, **where), _values(run, other, quantity, **where)
    return formats.whole(ours / theirs)


def _ratios(run: RunData) -> pd.DataFrame:
    """Of all measures that run several things in turn."""
    found = [frame for name, frame in run.frames.items() if name.endswith("_ratios") and len(frame)]
    if not found:
        raise NumberError("the run has no ratios")
    return pd.concat(found)


def _barred(run: RunData, kind: str | None, tokens: int | None, met: bool | None) -> pd.DataFrame:
    """The ratios that are held to a bar, all or those that meet it or do not; None: of every kind or length."""
    where = {"kind": kind, "tokens": tokens}
    found = _matching(_ratios(run), "*", {column: value for column, value in where.items() if value is not None})
    return found[found["bar"].notna() & ((found["met"] == met) if met is not None else True)]


def bars(run: RunData, kind: str | None = None, tokens: int | None = None, met: bool | None = None) -> str:
    """How many bars there are; how many of them are met, or are not."""
    return formats.whole(len(_barred(run, kind, tokens, met)))


def bars_without(run: RunData, kind: str, tokens: int, other: int) -> str:
    """How many layouts are held to a bar at `tokens` and were not run at `other`."""
    here, there = (set(_barred(run, kind, n, None)["layout"]) for n in (tokens, other))
    return formats.whole(len(here - there))


def ratios(run: RunData, kind: str, tokens: int, met: bool | None = None) -> str:
    """`0.38 to 0.49`: the range of the ratios that are held to a bar."""
    return _spread([f"{value:.2f}" for value in _barred(run, kind, tokens, met)["value"]])


def outcome(run: RunData, layout: str, **where: Any) -> str:
    """`met` or `not met`: a bar."""
    (met,) = _matching(_ratios(run), layout, where)["met"]
    return "met" if met else "not met"


def bar(run: RunData, layout: str, **where: Any) -> str:
    """The bar that a ratio is held to."""
    (value,) = _matching(_ratios(run), layout, where)["bar"]
    return f"{value:g}"


_QUOTED = (recall, recall_seeds, recall_table, number, times, taught, untaught, solve, budget, trained, asked)
FUNCTIONS: dict[str, Callable[..., str]] = {f.__name__: f for f in (*_QUOTED, bar, bars, bars_without, ratios, outcome)}
"""What a page may ask for by name; each takes a run first and returns the text to be written."""
