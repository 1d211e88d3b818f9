"""Results that other tools measured, as runs marked foreign: shown beside ours, never part of a claim.

A format is read from the files that its tool writes; whatever a file does not say stays unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..cards import describe_mixers
from ..runs import ResultLine, Run, RunError
from ..schema import SCHEMA_VERSION
from . import fla, lm_eval, pytest_benchmark
from .reading import ForeignError, Format, Reading, Value

__all__ = ["FORMATS", "MEASURE", "ForeignError", "import_file", "read_foreign"]

MEASURE = "foreign"
FORMATS: dict[str, Format] = {
    "pytest-benchmark": pytest_benchmark.FORMAT,
    "lm-eval": lm_eval.FORMAT,
    "fla": fla.FORMAT,
}


def import_file(path: Path, folder: Path, name: str = "auto") -> Run:
    """Read a file of the format `name` of `FORMATS` (`auto`: whichever it looks like), and make a run folder of it.

    Raises `ForeignError` for a file that is not of the format, `RunError` if the folder is there already.
    """
    if folder.exists():
        raise RunError(f"{folder} is there already; choose another folder with --out, or remove it")
    content = path.read_bytes()
    reading = read_foreign(content, path.name, name)
    digest = hashlib.sha256(content).hexdigest()
    origin = {"tool": reading.tool, "version": reading.version, "file": path.name, "sha256": digest}
    origin["imported"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    environment = {"schema_version": SCHEMA_VERSION, "foreign": origin, **describe_mixers({}), **reading.environment}
    layouts = {value.layout: value.layout for value in reading.values}
    description = f"Imported from {path.name}, as {reading.tool} wrote it: measured by another tool, part of no claim."
    suite = {"name": re.sub(r"[^\w.-]+", "-", folder.name), "description": description, "layouts": layouts}
    lines = [_line(value, digest, number) for number, value in enumerate(reading.values)]
    _write_run(folder, {**suite, "measures": [{"measure": MEASURE}]}, environment, lines)
    return Run(folder)


def read_foreign(content: bytes, source: str, name: str = "auto") -> Reading:
    """What the file `source` says. Raises `ForeignError` if it is not of the format, or holds no value."""
    data = _parse(content, source)
    found = _recognise(data, source) if name == "auto" else name
    known = FORMATS[found]
    if not known.recognises(data):
        raise ForeignError(f"{source} is not of the format {found}: expected {known.expected}")
    try:
        reading = known.read(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ForeignError(f"{source} looks like {found}, but {where}: {first['msg']}") from None
    except (ForeignError, OverflowError) as error:  # whole numbers in JSON have no end
        raise ForeignError(f"{source} looks like {found}, but {error}") from None
    if not reading.values:
        raise ForeignError(f"{source} looks like {found}, but holds no result")
    return reading


def _parse(content: bytes, source: str) -> Any:
    """JSON, or else text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ForeignError(f"{source} is no text: expected {_expectations()}") from None
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ForeignError(f"{source} holds text that is no Unicode (half of a surrogate pair)") from None
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] in ("{", "["):
            raise ForeignError(f"{source} is damaged JSON: {error}; get the whole file again") from None
        return text
    return data


def _recognise(data: Any, source: str) -> str:
    for name, known in FORMATS.items():
        if known.recognises(data):
            return name
    raise ForeignError(f"{source} is of no format that is known: expected {_expectations()}")


def _expectations() -> str:
    return "; or ".join(f"{name}: {known.expected}" for name, known in FORMATS.items())


def _line(value: Value, digest: str, number: int) -> ResultLine:
    """number: of the value in its file, which tells apart what the file itself does not."""
    finite = math.isfinite(value.value)
    what = {name: getattr(value, name) for name in ("quantity", "unit", "task", "mode", "length", "better")}
    metrics = {name: getattr(value, name) for name in ("value", "low", "high", "interval", "count")}
    settings = json.loads(json.dumps(dict(value.settings)), parse_constant=str)
    return ResultLine(
        case=hashlib.sha256(f"{digest} {number}".encode()).hexdigest()[:12],
        layout=value.layout,
        measure=MEASURE,
        parameters={**what, "settings": settings},
        seed=0,
        status="ok" if finite else "not_finite",
        seconds=0.0,
        metrics={**what, **metrics} if finite else None,
        error=None if finite else f"the file has no finite number for {value.quantity}",
    )


def _write_run(folder: Path, suite: dict[str, Any], environment: dict[str, Any], lines: list[ResultLine]) -> None:
    """All of the folder or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        run = Run(temporary)
        with run.locked() as store:
            run.write_suite(suite)
            run.write_environment(environment)
            for line in lines:
                store.append(line)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
