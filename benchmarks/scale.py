"""A suite at toy scale: the same layouts, measures and settings at sizes of a minute on a CPU.

Its numbers say nothing. It shows that a suite made for a machine that is not at hand runs to its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..mixers import mixer_options
from ..models import parse_layout
from .suite import Suite, mixer_names, parse_suite
from .yamlfile import SuiteError

D_MODEL, D_FF = 32, 64
SHORTEST, LENGTH_STEP = (64, 128, 256, 512), 16
MOST_SECONDS = 600.0

LENGTHS, LOADS = ("length", "lengths"), ("load", "loads", "n_needles")
# What every setting becomes at most, wherever it stands among the measures.
_MOST: dict[str, Any] = {
    "batch": 2,
    "eval_batch": 2,
    "examples": 2,
    "rounds": 3,
    "slow_rounds": 1,
    "budget_seconds": 0.0,
    "new_tokens": 2,
    "decode_chunks": 1,
    "copy_bytes": 2**16,
    "steps": 4,
    "save_every": 2,
    "every": 2,
    "chunk_size": 64,
    "d_head": 16,
}
# What has to go: no toy is taught, nor held to bars of speed.
_REPLACED: dict[str, Any] = {"bars": [], "bar": None}


def toy(suite: Suite) -> Suite:
    """The suite at toy scale, on any device; the order of lengths and of loads is kept.

    Raises `SuiteError` if a setting does not go with such sizes.
    """
    for shortest in SHORTEST[:-1]:
        with contextlib.suppress(SuiteError):  # a task's questions may need more room
            return _toy(suite, shortest)
    return _toy(suite, SHORTEST[-1])


def _toy(suite: Suite, shortest: int) -> Suite:
    data = suite.resolved()
    measures = data["measures"]
    lengths = {length: shortest + LENGTH_STEP * i for i, length in enumerate(_numbers(measures, LENGTHS))}
    loads = {load: 1 + i for i, load in enumerate(_numbers(measures, LOADS))}
    sizes = {**dict.fromkeys(LENGTHS, lengths), **dict.fromkeys(LOADS, loads)}
    data["measures"] = [_scaled(measure, sizes) for measure in measures]
    widths = {"preset": "nano", "d_model": D_MODEL, "d_ff": D_FF}
    data["model"] |= {**widths, "mixer_defaults": _small_options(suite, data["model"])}
    data |= {
        "name": f"{data['name']}-toy",
        "description": "Toy scale, its numbers say nothing. " + data["description"],
        "device": None,
        "seeds": data["seeds"][:1],
        "time_limit_seconds": min(data["time_limit_seconds"], MOST_SECONDS),
    }
    for measure in data["measures"]:
        measure["seeds"] = measure["seeds"][:1]
    return parse_suite(yaml.safe_dump(data, sort_keys=False), f"{data['name']}.yaml")


def _scaled(value: Any, sizes: Mapping[str, Mapping[int, int]]) -> Any:
    if isinstance(value, list):
        return [_scaled(item, sizes) for item in value]
    if isinstance(value, dict):
        return {name: _setting(name, item, sizes) for name, item in value.items()}
    return value


def _setting(name: str, value: Any, sizes: Mapping[str, Mapping[int, int]]) -> Any:
    if name in _REPLACED:
        return _REPLACED[name]
    if name in sizes:
        return _mapped(value, sizes[name])
    if name in _MOST and value is not None:
        return min(value, _MOST[name])
    return _scaled(value, sizes)


def _mapped(value: Any, sizes: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_mapped(item, sizes) for item in value]
    return min(value, sizes[value]) if value is not None else None


def _numbers(value: Any, names: tuple[str, ...]) -> list[int]:
    """Every number that stands under one of `names`, in rising order."""
    return sorted(set(_found(value, names)))


def _found(value: Any, names: tuple[str, ...]) -> Iterator[int]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name in names:
            yield from [n for n in (item if isinstance(item, list) else [item]) if n is not None]
        else:
            yield from _found(item, names)


def _small_options(suite: Suite, model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The choices that the suite makes for its mixers, with the small sizes that they declare for quick checks."""
    lines = [*suite.layouts.values(), *([model["match_layout"]] if model.get("match_layout") else [])]
    found = {}
    for name in sorted({name for line in lines for name in mixer_names(parse_layout(line))}):
        small = {option.name: option.small for option in mixer_options(name).values() if option.small is not None}
        chosen = model["mixer_defaults"].get(name, {})
        found[name] = {k: v for k, v in chosen.items() if isinstance(v, bool | str)} | small
    return found
