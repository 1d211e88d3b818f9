"""What tells the cases of one measure apart beside layout, seed and size: settings that a suite gives twice."""

from __future__ import annotations

import hashlib
import json
import marshal
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .result import Result

_ALWAYS_ALIKE = {"model", "layout_line", "threads", "tf32", "modes", "lengths"}  # TF32 follows from the precision
_TASK = "task.task"
_LONG = 40  # characters of a value
_TRAINED = ("tuning", "training", "recall", "perplexity")  # what a model is trained for, and what is asked of it


def purpose(line: Result) -> str:
    """What a model is trained for: `perplexity` if its task is text, else `recall`. Other measures are themselves."""
    if line.measure not in _TRAINED:
        return line.measure
    if line.measure == "perplexity":
        return line.measure
    return "perplexity" if (line.parameters.get("task") or {}).get("task") == "text" else "recall"


def experiments(lines: list[Result], alike: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Case -> how its settings differ from those of other cases of its purpose; "" if they are all alike.

    Of training and what follows from it, task and training settings count, but for what was tuned; of tuning the task
    alone, since a rung has a training of its own. So the cases of one trained model have one name. Several tasks are
    named first; what tells the cases of one task apart follows. alike: measure -> settings that tell nothing apart.
    """
    names: dict[str, str] = {}
    tuned = _tuned(lines)
    known: dict[tuple[str, bytes], dict[str, Any]] = {}  # many cases have the same settings
    groups: dict[str, dict[Any, list[tuple[Result, dict[str, Any]]]]] = {}
    for line in lines:
        told = _told(line, alike.get(line.measure, ()))
        key = line.measure, marshal.dumps(told, 2)
        if key not in known:
            known[key] = _settings(line, told, tuned)
        values = known[key]
        groups.setdefault(purpose(line), {}).setdefault(values.get(_TASK), []).append((line, values))
    for tasks in groups.values():
        for task, same in tasks.items():
            asked = {id(values): values for line, values in same if line.measure != "tuning"}
            differing = _differing(list(asked.values()))
            said: dict[int, str] = {}
            for line, values in same:
                if id(values) not in said:
                    parts = [f"{key} = {_short(values[key])}" for key in differing if values.get(key) is not None]
                    said[id(values)] = ", ".join([*([str(task)] if len(tasks) > 1 and task else []), *parts])
                names[line.case] = said[id(values)]
    return names


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for values in settings for key in values)
    return [key for key in keys if len({_canonical(values.get(key)) for values in settings}) > 1]


def _tuned(lines: list[Result]) -> set[str]:
    """The names of the options that tuning chose."""
    found = ((line.metrics or {}).get("chosen" if line.measure == "training" else "choice") for line in lines)
    return {str(name) for choice in found if isinstance(choice, dict) for name in choice}


def _told(line: Result, alike: Collection[str]) -> dict[str, Any]:
    """The parameters that may tell a case apart from others of its purpose."""
    if line.measure in _TRAINED:
        kept = ("task",) if line.measure == "tuning" else ("task", "training")
        return {key: line.parameters[key] for key in kept if line.parameters.get(key)}
    return {k: v for k, v in line.parameters.items() if k not in _ALWAYS_ALIKE and k not in alike}


def _settings(line: Result, told: dict[str, Any], tuned: set[str]) -> dict[str, Any]:
    flat = dict(_flatten(told))
    if line.measure not in _TRAINED:
        return flat
    return {key: value for key, value in flat.items() if key.removeprefix("training.") not in tuned}


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _short(value: Any) -> str:
    """A value as people read it; a long one, such as a curriculum, by its beginning and a digest."""
    text = str(value)
    if len(text) <= _LONG:
        return text
    digest = hashlib.sha256(_canonical(value).encode()).hexdigest()
    return f"{text[: _LONG // 2]}… ({digest[:6]})"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
