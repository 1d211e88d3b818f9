"""A run as tidy tables: one row for one measured thing, one column for one property."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..benchmarks.runs import ResultLine, Run, RunError
from . import rows
from .variants import experiments

KEYS = ["layout", "variant", "seed"]
RECALL = [*KEYS, "length", "load", "passes", "memory", "depth", "recent", "correct", "total", "chance"]
RECALL += ["backends", "case"]
ANSWERS = [*KEYS, "length", "load", "passes", "memory", "hits", "chance", "backends", "case"]
FAILED_LENGTHS = [*KEYS, "length", "status", "case"]
TUNING = [*KEYS, "measure", "rung", "choice", "tokens", "score", "accuracy", "chosen", "seconds", "case"]
TRAINING = [*KEYS, "measure", "task", "lengths", "loads", "chosen", "steps", "tokens", "seconds", "first_loss"]
TRAINING += [
    "compile_seconds",
    "graph_breaks",
    "last_loss",
    "bar",
    "bar_length",
    "bar_load",
    "reached",
    "passed",
    "tokens_to_solve",
    "status",
    "case",
]
CURVES = [*KEYS, "measure", "step", "loss"]
SPEED = [*KEYS, "mode", "length", "tokens_per_second", "low", "high", "seconds", "seconds_low", "seconds_high"]
SPEED += ["rounds", "samples", "first_call_seconds", "compile_seconds", "graph_breaks", "backends", "case"]
MEMORY = [*KEYS, "mode", "length", "peak_bytes", "model_bytes", "optimizer_bytes", "state_bytes"]
MEMORY += ["activation_bytes_per_token", "method", "backends", "case"]
STATES = ["layout", "length", "state_bytes"]
PERPLEXITY = [*KEYS, "start", "end", "tokens", "nats", "bits_per_byte", "backends", "case"]
OP_SPEED = [*KEYS, "measure", "op", "backend", "mode", "tokens", "batch", "seconds", "seconds_low", "seconds_high"]
OP_SPEED += ["units", "rounds", "samples", "peak_bytes", "method", "floor_bytes", "floor_seconds", "copy_bandwidth"]
OP_SPEED += ["ran", "first_call_seconds", "compile_seconds", "graph_breaks", "case"]
OP_RATIOS = [*KEYS, "measure", "kind", "mode", "tokens", "lengths", "batch", "backend", "over", "value", "low", "high"]
OP_RATIOS += ["bar", "met", "case"]
MODELS = ["layout", "layout_line", "parameters", "flops_per_token", "flops_length", "d_model", "n_layers", "d_ff"]
MODELS += ["match"]
BACKENDS = ["layout", "measure", "op", "backends", "device"]
FAILURES = ["layout", "measure", "seed", "what", "status", "error", "seconds", "case"]
MISSING = ["layout", "measure", "seed", "expected", "found"]
_NOT_WRITTEN = {"answers": None, "speed": ["samples"], "op_speed": ["samples"]}  # long; results.jsonl holds them


@dataclass(frozen=True, eq=False)
class RunData:
    """Everything a report is made of: what was asked, where it ran, and the results as tables.

    `recall` and `answers` hold taught models only: those that passed the bar of their training, or had none.
    plan: the runner's list of cases; None for a run that kept none.
    """

    folder: Path
    suite: dict[str, Any]
    environment: dict[str, Any]
    plan: dict[str, Any] | None
    lines: list[ResultLine]
    layouts: list[str]
    tuning: pd.DataFrame
    training: pd.DataFrame
    curves: pd.DataFrame
    recall: pd.DataFrame
    answers: pd.DataFrame
    failed_lengths: pd.DataFrame
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
        """The tables by name, as they are written to CSV: without the strings of answers and the single rounds."""
        frames = {name: value for name, value in vars(self).items() if isinstance(value, pd.DataFrame)}
        kept = {name: frame for name, frame in frames.items() if _NOT_WRITTEN.get(name, []) is not None}
        return {name: frame.drop(columns=_NOT_WRITTEN.get(name) or []) for name, frame in kept.items()}


def read_run(folder: str | Path) -> RunData:
    """Read a run folder. Raises `RunError` if there is none, or a line of its results cannot be read."""
    run = Run(folder)
    suite, lines = run.suite(), run.results()
    if not isinstance(suite, dict):
        raise RunError(f"{run.suite_path} is not a suite; copy the suite that was run back to it")
    environment = run.environment() if run.environment_path.is_file() else {}
    plan = _read_plan(run.folder / "plan.json")
    try:
        return tabulate(run.folder, suite, environment, lines, plan)
    except (KeyError, TypeError) as error:
        message = f"{run.results_path} holds metrics of a form that this version does not know"
        raise RunError(f"{message} ({type(error).__name__}: {error}); run the suite again") from error


def tabulate(
    folder: Path,
    suite: dict[str, Any],
    environment: dict[str, Any],
    lines: list[ResultLine],
    plan: dict[str, Any] | None = None,
) -> RunData:
    """Turn result lines into tables, layouts in the order of the suite."""
    planned = (plan or {}).get("cases", [])
    said = {str(case["case"]): str(case.get("what") or "") for case in planned}
    named = [*map(str, suite.get("layouts") or {}), *(str(c["layout"]) for c in planned), *(li.layout for li in lines)]
    layouts = list(dict.fromkeys(named))
    order = {label: i for i, label in enumerate(layouts)}
    lines = sorted(lines, key=lambda line: (order[line.layout], line.seed))
    variants = experiments(lines)
    described = [(line, variants[line.case]) for line in lines]
    measured = [(line, variant) for line, variant in described if line.status == "ok" and line.metrics is not None]
    training = _frame(rows.training_rows(described), TRAINING)
    asked = _of_taught(measured, training)
    return RunData(
        folder=folder,
        suite=suite,
        environment=environment,
        plan=plan,
        lines=lines,
        layouts=layouts,
        tuning=_without_untaught(_frame(rows.tuning_rows(measured), TUNING), training),
        training=training,
        curves=_frame(rows.curve_rows(measured), CURVES),
        recall=_frame(rows.recall_rows(asked), RECALL),
        answers=_frame(rows.answer_rows(asked), ANSWERS),
        failed_lengths=_frame(rows.failed_length_rows(_of_taught(described, training)), FAILED_LENGTHS),
        speed=_frame(rows.speed_rows(measured), SPEED).sort_values("length", kind="stable", ignore_index=True),
        memory=_frame(rows.memory_rows(measured), MEMORY).sort_values("length", kind="stable", ignore_index=True),
        states=_frame(rows.state_rows(measured), STATES),
        perplexity=_frame(rows.perplexity_rows(measured), PERPLEXITY),
        op_speed=_frame(rows.op_speed_rows(measured), OP_SPEED),
        op_ratios=_frame(rows.op_ratio_rows(measured), OP_RATIOS),
        models=_frame(rows.model_rows(lines, layouts), MODELS),
        backends=_frame(rows.backend_rows(lines), BACKENDS),
        failures=_frame(rows.failure_rows(lines, said), FAILURES),
        missing=_frame(_missing_rows(plan, lines), MISSING),
    )


def _frame(made: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(list(made), columns=columns)


def _read_plan(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(plan["cases"], list) and isinstance(plan["final"], bool)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(f"{path} is not a plan of cases; run the suite again, which writes it anew") from error
    return plan


def _taught(training: pd.DataFrame) -> pd.DataFrame:
    """The trainings that passed their bar, or had none."""
    return training[(training["status"] == "ok") & (training["passed"] != False)]  # noqa: E712, None is no bar


def _of_taught(lines: rows.Lines, training: pd.DataFrame) -> rows.Lines:
    """`lines` without the recall of models that did not pass their bar, or whose training left no result."""
    taught = _taught(training)
    taught = taught[taught["measure"] == "recall"]
    known = set(zip(taught["layout"], taught["variant"], taught["seed"]))
    return [(line, v) for line, v in lines if line.measure != "recall" or (line.layout, v, line.seed) in known]


def _without_untaught(tuning: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """Tuning, with accuracies only of layouts of which a seed was taught."""
    taught = _taught(training)
    known = set(zip(taught["layout"], taught["measure"]))
    shown = [key in known for key in zip(tuning["layout"], tuning["measure"])]
    return tuning.assign(accuracy=tuning["accuracy"].astype(float).where(pd.Series(shown, tuning.index, dtype=bool)))


def _missing_rows(plan: dict[str, Any] | None, lines: list[ResultLine]) -> Iterator[dict[str, Any]]:
    """The planned cases that have no result, counted; a case that failed has one."""
    found = {line.case for line in lines}
    cases = (plan or {}).get("cases", [])
    asked = Counter((str(c["layout"]), str(c["measure"]), int(c["seed"])) for c in cases)
    there = Counter((str(c["layout"]), str(c["measure"]), int(c["seed"])) for c in cases if c["case"] in found)
    for key, count in asked.items():
        if there[key] < count:
            yield {**dict(zip(("layout", "measure", "seed"), key)), "expected": count, "found": there[key]}
