"""The versions of what a run records, and the way from each to the next.

A step only adds what its version brought, with the value that says "not recorded" or what was true of every run then:
nothing that was written is changed or lost, fields that nobody knows included. Reading walks all steps to the present.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 3
"""Of the lines of `results.jsonl`, and of `environment.json`."""
CHECKSUM_VERSION = 3
"""From this version on every line has a checksum."""

Record = dict[str, Any]
_IN_TURN = ("op_speed", "overhead", "mixer_speed", "library_overhead", "decode_speed")
_WITH_BATCH = ("speed", "memory", *_IN_TURN)


class SchemaError(ValueError):
    """A record of a version that cannot be read; the message is to follow the name of its file."""


def migrate(line: Record) -> Record:
    """A line of `results.jsonl` as `SCHEMA_VERSION` has it; the line given stays as it is.

    Raises `SchemaError` for a newer version, or none at all.
    """
    return _walk(line, {1: _line_from_1, 2: _line_from_2})


def migrate_environment(environment: Record, layouts: Callable[[], Mapping[str, str]]) -> Record:
    """What stands in `environment.json` as `SCHEMA_VERSION` has it; what is given stays as it is.

    layouts: gives the run's layout lines by label; called for an environment of before version 2 alone, which then
    gets its mixers from the registry. That imports them, and torch with them. Raises as `migrate`.
    """
    return _walk(environment, {1: lambda old: _environment_from_1(old, layouts), 2: _environment_from_2})


def _walk(record: Record, steps: Mapping[int, Callable[[Record], Record]]) -> Record:
    while (version := _version(record)) != SCHEMA_VERSION:
        record = {**steps[version](record), "schema_version": version + 1}
    return record


def _version(record: Record) -> int:
    version = record.get("schema_version", 1)  # environments of version 1 do not say it
    if type(version) is not int or version < 1:
        raise SchemaError(f"has no schema version but {version!r}; was it edited?")
    if version > SCHEMA_VERSION:
        raise SchemaError(f"has schema version {version}, and this mixerzoo reads {SCHEMA_VERSION}: update it")
    return version


def _environment_from_1(environment: Record, layouts: Callable[[], Mapping[str, str]]) -> Record:
    """Version 2 brought `cards` and `layout_mixers`, see `describe_mixers`."""
    from .cards import describe_mixers

    # the labels of a foreign run are whatever another tool called its rows
    return {**describe_mixers({} if "foreign" in environment else layouts()), **environment}


def _environment_from_2(environment: Record) -> Record:
    """Version 3 brought `machines`, those that cases ran on, by name."""
    return {"machines": {}, **environment}


def _line_from_1(line: Record) -> Record:
    """Version 2 brought `ended` and the hash of a training's data; the rest came with versions of mixerzoo before."""
    measure, parameters, metrics = (line.get(name) for name in ("measure", "parameters", "metrics"))
    if isinstance(parameters, dict):
        line = {**line, "parameters": _parameters_from_1(measure, parameters)}
    if isinstance(metrics, dict):
        line = {**line, "metrics": _metrics_from_1(measure, metrics)}
    return {**line, "ended": None}


def _line_from_2(line: Record) -> Record:
    """Version 3 brought where a case ran, what was lost before, and its memory; a checksum, which none had; and how
    often a training was started and what was found damaged then."""
    metrics = line.get("metrics")
    training = metrics.get("training") if isinstance(metrics, dict) else None
    if line.get("measure") in ("tuning", "training") and isinstance(metrics, dict) and isinstance(training, dict):
        line = {**line, "metrics": {**metrics, "training": {"resumed_at": None, "warnings": [], **training}}}
    return {"machine": None, "attempts": [], "peak_bytes": None, **line}


def _parameters_from_1(measure: Any, parameters: Record) -> Record:
    model = parameters.get("model")
    layout = model.get("layout", "") if isinstance(model, dict) else ""
    known: Record = {"batch": 1} if measure in _WITH_BATCH else {}
    return {"layout_line": layout, **known, **parameters}


def _metrics_from_1(measure: Any, metrics: Record) -> Record:
    if measure in ("tuning", "training"):
        return {"data": None, **metrics}
    if measure == "recall":
        return {"state_bytes": {}, **metrics, **_rows(metrics, recent=False)}
    if measure == "speed":
        return {"rounds": 0, "samples": [], **metrics}
    if measure in _IN_TURN:
        return {**metrics, **_rows(metrics, ran={})}
    return metrics


def _rows(metrics: Record, **missing: Any) -> Record:
    """The `rows` of metrics with what is missing in them; nothing for metrics without."""
    rows = metrics.get("rows")
    if not isinstance(rows, list):
        return {}
    return {"rows": [{**missing, **row} if isinstance(row, dict) else row for row in rows]}
