"""A run as tidy tables: one row for one measured thing, one column for one property."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ..benchmarks.runs import ResultLine, Run, RunError
from .statistics import bits_per_byte

# What does not tell one variant of a measure from another: the grid of sizes, and what cannot change the result.
_CASE = {"model", "layout_line", "device", "threads"}
_ALIKE = {
    "speed": {"model", "layout_line", "modes", "lengths", "rounds", "budget_seconds"},
    "memory": {"model", "layout_line", "modes", "lengths"},
    "op_speed": {"model", "layout_line", "modes", "lengths", "backends", "rounds", "slow", "slow_rounds", "bars"}
    | {"decode_chunks", "copy_bytes"},
    "overhead": {"model", "layout_line", "modes", "lengths", "rounds", "bars"},
}
IN_TURN = ("op_speed", "overhead")  # measures of several things in one process, held to bars
_SPLIT = ("speed", "memory")  # measured one mode and one length at a time
_ALIKE_TRAINED = {"model", "layout_line", "threads", "eval_batch"}
_CURVE_POINTS = 120

KEYS = ["layout", "variant", "seed"]
RECALL = [
    *KEYS,
    "trained_on",
    "length",
    "depth",
    "passes",
    "recent",
    "correct",
    "total",
    "chance",
    "backends",
    "case",
]
TRAINING = [*KEYS, "measure", "trained_on", "steps", "tokens", "seconds", "first_loss", "last_loss", "case"]
CURVES = [*KEYS, "measure", "step", "loss"]
SPEED = [
    *KEYS,
    "mode",
    "length",
    "tokens_per_second",
    "low",
    "high",
    "seconds",
    "seconds_low",
    "seconds_high",
    "rounds",
    "samples",
    "backends",
    "case",
]
MEMORY = [
    *KEYS,
    "mode",
    "length",
    "peak_bytes",
    "model_bytes",
    "optimizer_bytes",
    "state_bytes",
    "activation_bytes_per_token",
    "method",
    "backends",
    "case",
]
STATES = ["layout", "length", "state_bytes"]
PERPLEXITY = [*KEYS, "trained_on", "start", "end", "tokens", "nats", "bits_per_byte", "backends", "case"]
OP_SPEED = [
    *KEYS,
    "measure",
    "op",
    "backend",
    "mode",
    "tokens",
    "batch",
    "seconds",
    "seconds_low",
    "seconds_high",
    "units",
    "rounds",
    "samples",
    "peak_bytes",
    "method",
    "floor_bytes",
    "floor_seconds",
    "copy_bandwidth",
    "case",
]
OP_RATIOS = [
    *KEYS,
    "measure",
    "kind",
    "mode",
    "tokens",
    "lengths",
    "batch",
    "backend",
    "over",
    "value",
    "low",
    "high",
    "bar",
    "met",
    "case",
]
MODELS = [
    "layout",
    "layout_line",
    "parameters",
    "flops_per_token",
    "flops_length",
    "d_model",
    "n_layers",
    "d_ff",
    "match",
]
BACKENDS = ["layout", "measure", "op", "backends", "device"]
FAILURES = ["layout", "measure", "seed", "what", "status", "error", "seconds", "case"]
MISSING = ["layout", "measure", "seed", "expected", "found"]


@dataclass(frozen=True)
class RunData:
    """Everything a report is made of: what was asked, where it ran, and the results as tables."""

    folder: Path
    suite: dict[str, Any]
    environment: dict[str, Any]
    lines: list[ResultLine]
    layouts: list[str]
    recall: pd.DataFrame
    training: pd.DataFrame
    curves: pd.DataFrame
    speed: pd.DataFrame
    memory: pd.DataFrame
    states: pd.DataFrame
    perplexity: pd.DataFrame
    op_speed: pd.DataFrame
    op_ratios: pd.DataFrame
    models: pd.DataFrame
    backends: pd.DataFrame
    failures: pd.DataFrame
    missing: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name, as they are written to CSV."""
        names = [n for n, value in vars(self).items() if isinstance(value, pd.DataFrame)]
        return {name: getattr(self, name) for name in names}


def read_run(folder: str | Path) -> RunData:
    """Read a run folder. Raises `RunError` if there is none, or a line of its results cannot be read."""
    run = Run(folder)
    suite, lines = run.suite(), run.results()
    if not isinstance(suite, dict):
        raise RunError(f"{run.suite_path} is not a suite; copy the suite that was run back to it")
    environment = run.environment() if run.environment_path.is_file() else {}
    try:
        return tabulate(run.folder, suite, environment, lines)
    except (KeyError, TypeError) as error:
        message = f"{run.results_path} holds metrics of a form that this version does not know"
        raise RunError(f"{message} ({type(error).__name__}: {error}); run the suite again") from error


def tabulate(folder: Path, suite: dict[str, Any], environment: dict[str, Any], lines: list[ResultLine]) -> RunData:
    """Turn result lines into tables, layouts in the order of the suite."""
    layouts = list(dict.fromkeys([*map(str, suite.get("layouts") or {}), *(line.layout for line in lines)]))
    order = {label: i for i, label in enumerate(layouts)}
    lines = sorted(lines, key=lambda line: (order[line.layout], line.seed))
    variants = _variants(lines)
    measured = [(line, variants[line.case]) for line in lines if line.status == "ok" and line.metrics is not None]
    return RunData(
        folder=folder,
        suite=suite,
        environment=environment,
        lines=lines,
        layouts=layouts,
        recall=_frame(_recall_rows(measured), RECALL),
        training=_frame(_training_rows(measured), TRAINING),
        curves=_frame(_curve_rows(measured), CURVES),
        speed=_frame(_speed_rows(measured), SPEED).sort_values("length", kind="stable", ignore_index=True),
        memory=_frame(_memory_rows(measured), MEMORY).sort_values("length", kind="stable", ignore_index=True),
        states=_frame(_state_rows(measured), STATES),
        perplexity=_frame(_perplexity_rows(measured), PERPLEXITY),
        op_speed=_frame(_op_speed_rows(measured), OP_SPEED),
        op_ratios=_frame(_op_ratio_rows(measured), OP_RATIOS),
        models=_frame(_model_rows(lines, layouts), MODELS),
        backends=_frame(_backend_rows(lines), BACKENDS),
        failures=_frame(_failure_rows(lines), FAILURES),
        missing=_frame(_missing_rows(suite, lines, layouts), MISSING),
    )


def size(line: ResultLine, name: str) -> Any:
    """The mode or the length of a case that was split from a grid of `modes` and `lengths`; None if it was not."""
    values = line.parameters.get(f"{name}s")
    return values[0] if isinstance(values, list) and len(values) == 1 else None


def backends_text(line: ResultLine) -> str:
    """`attention: sdpa; fwpkm: torch`."""
    return "; ".join(f"{op}: {', '.join(names)}" for op, names in sorted(line.backends.items()))


def case_text(line: ResultLine) -> str:
    """What of its measure a case was: mode and length where it has one, else nothing."""
    mode, length = size(line, "mode"), size(line, "length")
    return ", ".join([*([str(mode)] if mode else []), *([f"{length:,} tokens"] if length else [])])


def _frame(rows: Iterator[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns)


def _variants(lines: list[ResultLine]) -> dict[str, str]:
    """Case -> how its parameters differ from those of other cases of the measure; "" if they are all alike."""
    names: dict[str, str] = {}
    for measure in dict.fromkeys(line.measure for line in lines):
        alike = _ALIKE.get(measure, _ALIKE_TRAINED)
        flat = {
            line.case: dict(_flatten({k: v for k, v in line.parameters.items() if k not in alike}))
            for line in lines
            if line.measure == measure
        }
        differing = [
            key
            for key in dict.fromkeys(key for values in flat.values() for key in values)
            if len({_canonical(values.get(key)) for values in flat.values()}) > 1
        ]
        for case, values in flat.items():
            names[case] = ", ".join(f"{key} = {values[key]}" for key in differing if values.get(key) is not None)
    return names


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _identity(line: ResultLine, variant: str) -> dict[str, Any]:
    return {
        "layout": line.layout,
        "variant": variant,
        "seed": line.seed,
        "measure": line.measure,
        "case": line.case,
        "backends": backends_text(line),
        "trained_on": (line.parameters.get("training") or {}).get("length"),
    }


Measured = list[tuple[ResultLine, str]]


def _metrics(measured: Measured, measure: str) -> Iterator[tuple[ResultLine, dict[str, Any], dict[str, Any]]]:
    for line, variant in measured:
        if line.measure == measure:
            yield line, line.metrics or {}, _identity(line, variant)


def _recall_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for _, metrics, identity in _metrics(measured, "recall"):
        for row in metrics.get("rows") or []:
            yield {**identity, "passes": 1, "recent": False, "chance": math.nan, **row}


def _perplexity_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for _, metrics, identity in _metrics(measured, "perplexity"):
        for row in metrics.get("rows") or []:
            yield {**identity, **row, "bits_per_byte": bits_per_byte(row["nats"])}


def _op_speed_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for measure in IN_TURN:
        for line, metrics, identity in _metrics(measured, measure):
            shared = {"op": line.parameters.get("op", "model")}
            shared["copy_bandwidth"] = (metrics.get("copy_bandwidth") or {}).get("median")
            for row in metrics["rows"]:
                seconds = {"seconds": row["median"], "seconds_low": row["q1"], "seconds_high": row["q3"]}
                yield {**identity, "floor_bytes": math.nan, "floor_seconds": math.nan, **row, **seconds, **shared}


def _op_ratio_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for measure in IN_TURN:
        for line, metrics, identity in _metrics(measured, measure):
            shared = {"batch": line.parameters.get("batch", 1), "lengths": line.parameters.get("lengths")}
            for ratio in metrics["ratios"]:
                yield {**identity, **shared, **ratio}


def _trainings(measured: Measured) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[list[float]]]]:
    for line, variant in measured:
        training = (line.metrics or {}).get("training")
        if training:
            yield _identity(line, variant), training, training.get("curve") or []


def _training_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for identity, training, curve in _trainings(measured):
        losses = {"first_loss": curve[0][1], "last_loss": curve[-1][1]} if curve else {}
        yield {**identity, **{k: v for k, v in training.items() if k != "curve"}, **losses}


def _curve_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """Training curves, long ones as means over equal stretches of steps."""
    for identity, _, curve in _trainings(measured):
        stretch = math.ceil(len(curve) / _CURVE_POINTS)
        for start in range(0, len(curve), stretch or 1):
            points = curve[start : start + stretch]
            loss = sum(loss for _, loss in points) / len(points)
            yield {**identity, "step": points[-1][0], "loss": loss}


def _speed_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for line, metrics, identity in _metrics(measured, "speed"):
        rates, seconds = metrics["tokens_per_second"], metrics["seconds"]
        yield {
            **identity,
            "mode": size(line, "mode"),
            "length": size(line, "length"),
            "tokens_per_second": rates["median"],
            "low": min(rates["q1"], rates["q3"]),
            "high": max(rates["q1"], rates["q3"]),
            "seconds": seconds["median"],
            "seconds_low": min(seconds["q1"], seconds["q3"]),
            "seconds_high": max(seconds["q1"], seconds["q3"]),
            "rounds": metrics.get("rounds", 0),
            "samples": metrics.get("samples") or [],
        }


def _memory_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for line, metrics, identity in _metrics(measured, "memory"):
        sizes = {"mode": size(line, "mode"), "length": size(line, "length")}
        yield {**identity, **sizes, **metrics}


def _state_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """State bytes of one sequence at each length, from the memory measure, or else from recall."""
    found: dict[tuple[str, int], float] = {}
    for line, metrics, _ in _metrics(measured, "memory"):
        if metrics.get("state_bytes") is not None:
            batch = line.parameters.get("batch", 1)
            found.setdefault((line.layout, int(size(line, "length"))), metrics["state_bytes"] / batch)
    for line, metrics, _ in _metrics(measured, "recall"):
        for length, held in (metrics.get("state_bytes") or {}).items():
            found.setdefault((line.layout, int(length)), held)
    for (layout, length), held in sorted(found.items(), key=lambda item: item[0][1]):
        yield {"layout": layout, "length": length, "state_bytes": held}


def _model_rows(lines: list[ResultLine], layouts: list[str]) -> Iterator[dict[str, Any]]:
    """Sizes of every layout's model; FLOPs of a forward pass at the greatest length where all were counted."""
    flops: dict[int, dict[str, float]] = {}
    for line in lines:
        metrics, trained = line.metrics or {}, (line.parameters.get("training") or {}).get("length")
        if "flops" in metrics and (length := size(line, "length")):
            flops.setdefault(length, {})[line.layout] = metrics["flops"] / length
        elif "flops_per_token" in metrics and trained:
            flops.setdefault(trained, {})[line.layout] = metrics["flops_per_token"]
    length = max(flops, key=lambda n: (len(flops[n]), n), default=None)
    for layout in layouts:
        own = [line for line in lines if line.layout == layout]
        if not own:
            continue
        model = dict(own[0].parameters.get("model", {}))
        if model.get("match"):
            model["d_ff"] = None  # the width before matching
        counted = {k: v for line in own for k, v in (line.metrics or {}).items() if k in ("parameters", "d_ff")}
        each = {"flops_per_token": flops[length].get(layout), "flops_length": length} if length else {}
        yield {**model, **counted, **each, "layout": layout, "layout_line": layout_line(own[0])}


def layout_line(line: ResultLine) -> str:
    return str(line.parameters.get("layout_line") or line.parameters.get("model", {}).get("layout", ""))


def _backend_rows(lines: list[ResultLine]) -> Iterator[dict[str, Any]]:
    seen: dict[tuple[str, str, str, str], set[str]] = {}
    for line in lines:
        for op, names in sorted(line.backends.items()):
            key = (line.layout, line.measure, op, str(line.parameters.get("device", "")))
            seen.setdefault(key, set()).update(names)
    for (layout, measure, op, device), found in seen.items():
        yield {"layout": layout, "measure": measure, "op": op, "backends": ", ".join(sorted(found)), "device": device}


def _failure_rows(lines: list[ResultLine]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.status != "ok":
            row = {k: getattr(line, k) for k in FAILURES if k != "what"}
            yield {**row, "what": case_text(line), "error": line.error or "no message"}


def _missing_rows(suite: dict[str, Any], lines: list[ResultLine], layouts: list[str]) -> Iterator[dict[str, Any]]:
    """What the suite asks for and the results do not hold; a case that failed is there."""
    found = set()
    for line in lines:
        settings = {k: v for k, v in line.parameters.items() if k not in _CASE}
        found.add((line.layout, line.measure, line.seed, _canonical(settings)))
    expected = {cell: None for entry in suite.get("measures") or [] for cell in _cells(entry, suite, layouts)}
    asked, there = Counter(cell[:3] for cell in expected), Counter(cell[:3] for cell in expected if cell in found)
    for key, count in asked.items():
        if there[key] < count:
            yield {**dict(zip(("layout", "measure", "seed"), key)), "expected": count, "found": there[key]}


def _cells(entry: dict[str, Any], suite: dict[str, Any], layouts: list[str]) -> Iterator[tuple[str, str, int, str]]:
    """The cases of an entry of a resolved suite: layout, measure, seed, and the parameters as JSON."""
    settings = {k: v for k, v in entry.items() if k not in ("measure", "layouts", "seeds")}
    grid = [settings]
    if entry["measure"] in _SPLIT:
        sizes = product(settings.get("modes") or [], settings.get("lengths") or [])
        grid = [{**settings, "modes": [mode], "lengths": [length]} for mode, length in sizes]
    seeds = entry.get("seeds") or suite.get("seeds") or [0]
    for layout, seed, cell in product(entry.get("layouts") or layouts, seeds, grid):
        yield str(layout), entry["measure"], seed, _canonical(cell)
