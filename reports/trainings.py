"""Trainings as rows of tidy tables, and which of them taught their model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .lines import COMPILED, Lines, Row, choice_text, identity, measured

CURVE_POINTS = 120
_LOADS = ("n_needles", "n_pairs", "n_tokens", "n_distinct", "n_entries")  # what tasks call their load


def training_rows(lines: Lines) -> Iterator[Row]:
    """One row for every training; one that failed has its status.

    What it reached, and when, stands only where the bar was passed in the end.
    """
    for line, variant in lines:
        if line.measure != "training":
            continue
        metrics = line.metrics or {}
        record, settings = metrics.get("training") or {}, line.parameters.get("training") or {}
        curve, bar = record.get("curve") or [], record.get("bar") or {}
        lengths, loads = trained_sizes(line.parameters, bar.get("load"))
        passed = bar.get("passed")
        declared = settings.get("bar") or {}
        yield {
            **identity(line, variant),
            "task": (line.parameters.get("task") or {}).get("task"),
            "lengths": lengths,
            "loads": loads,
            "chosen": choice_text(metrics.get("chosen")),
            **{key: record.get(key) for key in ("steps", "tokens", "seconds", *COMPILED)},
            "tokens_to_solve": record.get("tokens_to_solve") if passed else None,
            "first_loss": curve[0][1] if curve else None,
            "last_loss": curve[-1][1] if curve else None,
            "bar": bar.get("accuracy", declared.get("accuracy")),
            "bar_length": bar.get("length", declared.get("length")),
            "bar_load": bar.get("load", declared.get("load")),
            "reached": bar.get("reached") if passed else None,
            "passed": passed,
            "peak_bytes": line.peak_bytes,
        }


def trained_sizes(parameters: dict[str, Any], bar_load: int | None = None) -> tuple[list[int], list[int]]:
    """The lengths and the loads that a model was trained on, rising: of its curriculum, or its one length.

    bar_load: of the bar, which is that of the task where neither the curriculum nor the task names one.
    """
    settings, task = parameters.get("training") or {}, parameters.get("task") or {}
    drawn = list(_drawn(settings.get("curriculum")))
    own_load = next((task[key] for key in _LOADS if isinstance(task.get(key), int)), bar_load)
    lengths = {d["length"] for d in drawn} or {settings.get("length")}
    loads = {d.get("load") or own_load for d in drawn} or {own_load}
    return sorted(n for n in lengths if n), sorted(n for n in loads if n)


def _drawn(value: Any) -> Iterator[dict[str, Any]]:
    """The `{length, load, weight}` of a curriculum, at whatever depth they stand."""
    if isinstance(value, dict) and isinstance(value.get("length"), int):
        yield value
    else:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from _drawn(inner)


def curve_rows(lines: Lines) -> Iterator[Row]:
    """Training curves, long ones as means over equal stretches of steps."""
    for _, metrics, known in measured(lines, "training"):
        curve = (metrics.get("training") or {}).get("curve") or []
        stretch = math.ceil(len(curve) / CURVE_POINTS)
        for start in range(0, len(curve), stretch or 1):
            points = curve[start : start + stretch]
            loss = sum(loss for _, loss in points) / len(points)
            yield {**known, "step": points[-1][0], "loss": loss}


def taught_models(lines: Lines) -> set[tuple[str, str, str, int]]:
    """(measure, layout, variant, seed) of the models that passed the bar of their training, or had none."""
    return {
        (row["measure"], row["layout"], row["variant"], row["seed"])
        for row in training_rows(lines)
        if row["status"] == "ok" and row["passed"] is not False
    }
