"""How what is timed in turn changed between two runs: against what ran beside it, so that the machine cancels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from . import formats
from .change import Change, matched, of_bytes, of_rounds
from .formats import mode_name
from .statistics import rows_of
from .table import in_brackets
from .tables import RunData


def in_turn_changes(measure: str, before: RunData, after: RunData) -> Iterator[Change]:
    """Contenders that were timed in turn: by the one beside them, else by what copying their bytes takes."""
    keys = ["layout", "variant", "seed", "op", "backend", "mode", "tokens", "batch"]
    beside = [_beside(run[f"{measure}_ratios"]) for run in (before, after)]
    controls = {(*case, over) for ratios in beside for (*case, _), over in ratios.items()}
    for key, own, other in matched(before[measure], after[measure], keys):
        layout, variant, _, _, backend, mode, tokens, batch = key
        sides = [next(rows_of(rows)) for rows in (own, other)]
        at = f"{'after' if mode == 'decode' else 'of'} {formats.whole(tokens)} tokens"
        at += f", batch {formats.whole(batch)}" if batch and batch != 1 else ""
        where = {"measure": measure, "layout": layout, "note": _ran_note(*sides)}
        what = f"{mode_name(mode)} {at}, {backend}{in_brackets(variant)}"
        if not pd.isna(own["peak_bytes"].iloc[0]) and not pd.isna(other["peak_bytes"].iloc[0]):
            yield of_bytes(where, what, "peak_bytes", *(float(side.peak_bytes) for side in sides))
        place = [(side.case, mode, tokens) for side in sides]
        if any((*at_case, backend) in controls for at_case in place) and not all(
            (*at_case, backend) in ratios for at_case, ratios in zip(place, beside)
        ):
            continue  # what others are held against
        over = {ratios.get((*at_case, backend)) for at_case, ratios in zip(place, beside)}
        control = over.pop() if len(over) == 1 else None
        yield _in_turn_change(where, what, control, (before[measure], after[measure]), sides)


def _in_turn_change(
    where: dict[str, Any], what: str, control: str | None, times: tuple[pd.DataFrame, pd.DataFrame], sides: list[Any]
) -> Change:
    if control is not None:
        rounds = [_by_control(rows, side, control) for rows, side in zip(times, sides)]
        by = f"times {control}"
    elif all(side.floor_seconds and not pd.isna(side.floor_seconds) for side in sides):
        rounds = [[second / side.floor_seconds for second in side.samples] for side in sides]
        by = "times copying"
    else:
        rounds, by = [list(side.samples) for side in sides], ""
    shown = [f"{np.median(own):.3g} {by}" if by else formats.si(float(np.median(own)), "s") for own in rounds]
    unit = f"seconds by those of {control or 'copying'}" if by else "seconds"
    return Change(**where, what=what, unit=unit, before=shown[0], after=shown[1], **of_rounds(*rounds))


def _by_control(rows: pd.DataFrame, side: Any, control: str) -> list[float]:
    """Seconds of each round by those of the contender beside it in the same round."""
    there = (rows["case"] == side.case) & (rows["mode"] == side.mode) & (rows["tokens"] == side.tokens)
    other = next(rows_of(rows[there & (rows["backend"] == control)]))
    return [own / others for own, others in zip(side.samples, other.samples)]


def _beside(ratios: pd.DataFrame) -> Mapping[tuple, str]:
    """(case, mode, tokens, contender) -> the contender that it is held against first."""
    found: dict[tuple, str] = {}
    for r in rows_of(ratios[ratios["over"].notna() & (ratios["kind"] != "smaller")]):
        found.setdefault((r.case, r.mode, r.tokens, r.backend), r.over)
    return found


def _ran_note(old: Any, new: Any) -> str:
    return "" if old.ran == new.ran else f"backends before: {old.ran or 'none'}; after: {new.ran or 'none'}"
