"""lm-evaluation-harness: `results_*.json`, as its `EvaluationTracker` writes them since version 0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from .reading import ForeignError, Format, Model, Reading, Value, finite, has, is_number, known


class _Samples(Model):
    effective: int | None = None


class _Config(Model):
    model: str | None = None
    device: str | None = None


class _LmEval(Model):
    results: dict[str, dict[str, Any]]
    groups: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    shots: dict[str, Any] = Field(default_factory=dict, alias="n-shot")
    samples: dict[str, _Samples] = Field(default_factory=dict, alias="n-samples")
    higher_is_better: dict[str, dict[str, bool | None] | None] = Field(default_factory=dict)
    config: _Config = _Config()
    model_name: str | None = None
    lm_eval_version: str | None = None
    transformers_version: str | None = None
    pretty_env_info: str = ""
    date: float | None = None


def _read_lm_eval(data: Any) -> Reading:
    said = _LmEval.model_validate(data)
    values = [value for task in said.results for value in _task_values(said, task)]
    about = {name: _first(pattern, said.pretty_env_info) for name, pattern in _PRETTY.items()}
    environment = known(
        started=None if said.date is None else _utc(said.date),
        device=said.config.device,
        machine=known(cpu=about["cpu"], os=about["os"]),
        gpu=about["gpu"] and {"name": about["gpu"]},
        python=about["python"],
        packages=known(torch=about["torch"], transformers=said.transformers_version),
    )
    return Reading("lm-evaluation-harness", said.lm_eval_version, environment, values)


# lines of torch.utils.collect_env
_PRETTY = {
    "torch": r"^PyTorch version: (.+)$",
    "os": r"^OS: (.+)$",
    "python": r"^Python version: (\S+)",
    "gpu": r"^GPU 0: (.+)$",
    "cpu": r"^Model name:\s+(.+)$",
}


def _task_values(said: _LmEval, task: str) -> Iterator[Value]:
    """The metrics of a task are under `metric,filter`, their standard errors under `metric_stderr,filter`."""
    found = said.results[task]
    settings = {"shots": said.shots.get(task), "version": said.versions.get(task), "group": task in said.groups or None}
    for key, value in found.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not is_number(value):
            raise ForeignError(f"results.{task}.{key} is {value!r:.40} and no number")
        error = found.get(f"{metric}_stderr,{filtered}")
        spread = float(error) if is_number(error) and math.isfinite(error) else None
        more = (said.higher_is_better.get(task) or {}).get(metric)
        yield Value(
            said.model_name or said.config.model or "the model",
            quantity=metric,
            value=float(value),
            low=None if spread is None else finite(value - spread),
            high=None if spread is None else finite(value + spread),
            interval=None if spread is None else "one standard error to each side",
            count=said.samples[task].effective if task in said.samples else None,
            task=task,
            better=None if more is None else "more" if more else "less",
            settings=known(filter=filtered, **settings),
        )


def _utc(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else None


FORMAT = Format(
    "a results_*.json of lm-evaluation-harness 0.4 or later, whose `results` holds metrics such as `acc,none` by task",
    lambda data: has(data, results=dict),
    _read_lm_eval,
)
