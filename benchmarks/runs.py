"""The run store: a folder that holds what was asked (`suite.yaml`), where it ran (`environment.json`), the cases that
are known so far (`plan.json`), and one JSON line for every finished case (`results.jsonl`). Killed at whatever moment,
no finished case is lost or doubled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .schema import SCHEMA_VERSION, SchemaError, migrate, migrate_environment

Status = Literal["ok", "out_of_memory", "timeout", "crashed", "not_finite", "invalid"]
"""How a case ended."""
STATUSES: tuple[Status, ...] = get_args(Status)
"""All that a case may end with."""


class RunError(ValueError):
    """A run folder that cannot be read, or not be written to; the message says what to do."""


class ResultLine(BaseModel):
    """One finished case, one line of `results.jsonl`; fields that this version does not know are kept.

    case: id, a hash of what was measured. layout: the layout's label in the suite.
    parameters: those of the measure, and `model` (the resolved configuration), `layout_line`, `device`, `threads`, and
        `tf32` (whether CUDA might compute float32 in TF32; missing where it was not recorded).
    backends: op -> names of the implementations that ran. seconds: wall-clock time of the whole case.
    ended: when the case was over, ISO 8601 in UTC; None where that was not recorded.
    machine: `name` and `kind` of where it ran (see `Machine`); None where that was not recorded, or is not known.
    attempts: those before that came to nothing because a machine was lost: `machine`, `ended`, `seconds` and `why`.
    peak_bytes: the most resident memory that its processes held together; None where that was not recorded.
    metrics: what the measure returned, None unless status is `ok`. error: what went wrong, None if nothing did.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: int = SCHEMA_VERSION
    case: str
    layout: str
    measure: str
    parameters: dict[str, Any]
    seed: int
    status: Status
    backends: dict[str, list[str]] = Field(default_factory=dict)
    seconds: float
    ended: str | None = None
    machine: dict[str, str] | None = None
    attempts: list[dict[str, Any]] = Field(default_factory=list)
    peak_bytes: int | None = None
    metrics: dict[str, Any] | None = None
    error: str | None = None


class Run:
    """A run folder. Reading needs no lock; `with run.locked():` is how one writer at a time adds results."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.suite_path = self.folder / "suite.yaml"
        self.environment_path = self.folder / "environment.json"
        self.results_path = self.folder / "results.jsonl"
        self.plan_path = self.folder / "plan.json"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.suite_path.is_file()

    def checkpoint_folder(self, case: str) -> Path:
        """Where a case keeps its checkpoints; made by the case that needs it."""
        return self.folder / "checkpoints" / case

    def suite(self) -> dict[str, Any]:
        """The resolved suite. Raises `RunError` if the folder holds no run."""
        self._require(self.suite_path)
        return yaml.safe_load(self.suite_path.read_text(encoding="utf-8"))

    def environment(self) -> dict[str, Any]:
        """The machine and the software that the run was made with, and its mixers, see `describe_mixers`.

        Reading one of schema version 1 imports torch, to look the mixers up. Raises `RunError` if there is none.
        """
        data = self._environment()
        try:
            return migrate_environment(data, self._layouts)
        except SchemaError as error:
            raise RunError(f"{self.environment_path} {error}") from None

    @property
    def is_foreign(self) -> bool:
        """Whether another tool measured it: the environment's `foreign` says which, and no claim may rest on it."""
        return self.environment_path.is_file() and "foreign" in self._environment()

    def results(self) -> list[ResultLine]:
        """The finished cases in the order in which each first finished; of a case that ran again, the last line.

        A last line that was torn by a kill is passed over. Raises `RunError` for any other line that is no result.
        """
        if not self.results_path.is_file():
            self._require(self.suite_path)
            return []
        lines, _ = split_torn_line(self.results_path.read_bytes())
        found: dict[str, ResultLine] = {}
        for number, line in enumerate(lines, start=1):
            result = self._parse(number, line)
            found[result.case] = result
        return list(found.values())

    def locked(self) -> RunLock:
        """A context in which this process is the only one that adds results."""
        return RunLock(self)

    def write_suite(self, suite: dict[str, Any]) -> None:
        text = yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=110)
        write_atomically(self.suite_path, text)

    def write_environment(self, environment: dict[str, Any]) -> None:
        write_atomically(self.environment_path, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")

    def plan(self) -> dict[str, Any] | None:
        """The cases that are known: `final` (no result can add any) and `cases`; None for a run that kept no plan."""
        return json.loads(self.plan_path.read_text(encoding="utf-8")) if self.plan_path.is_file() else None

    def write_plan(self, plan: dict[str, Any]) -> None:
        write_atomically(self.plan_path, json.dumps(plan, ensure_ascii=False) + "\n")

    def _environment(self) -> dict[str, Any]:
        """What stands in `environment.json`, of whatever version."""
        self._require(self.environment_path)
        try:
            data = json.loads(self.environment_path.read_bytes())
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise RunError(
                f"{self.environment_path} is not a JSON object; copy the one that the run was made with back"
            )
        return data

    def _layouts(self) -> dict[str, str]:
        """The layout lines of the suite by label; none without a suite."""
        suite = self.suite() if self.exists else None
        layouts = suite.get("layouts") if isinstance(suite, dict) else None
        return layouts if isinstance(layouts, dict) else {}

    def _require(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"{self.folder} holds no run: it has no {path.name}; make one with `mixerzoo run SUITE`")

    def _parse(self, number: int, line: bytes) -> ResultLine:
        where = f"{self.results_path}:{number}"
        try:
            data = json.loads(line)
        except ValueError:
            raise RunError(f"{where} is not JSON; remove that line and run again") from None
        if not isinstance(data, dict):
            raise RunError(f"{where} is not a result line: it is no JSON object")
        try:
            return ResultLine.model_validate(migrate(data))
        except SchemaError as error:
            raise RunError(f"{where} {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise RunError(f"{where} is not a result line: {field}: {first['msg']}") from None


class RunLock:
    """The right to add results, from `Run.locked()`. Held by the open file `fileno`, so the kernel takes it back when
    this process dies; a child that inherits `fileno` keeps it until it is gone as well.
    """

    patience_seconds = 5.0  # children of a killed runner need a moment to die

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock: int | None = None
        self._results: int | None = None

    @property
    def fileno(self) -> int:
        assert self._lock is not None, "the lock is not held"
        return self._lock

    def __enter__(self) -> RunLock:
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.run.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._acquire()
            self._results = os.open(self.run.results_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._repair()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._results, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._results = self._lock = None

    def append(self, result: ResultLine) -> None:
        """Add one result; when this returns, the line is on the disk."""
        assert self._results is not None, "the lock is not held"
        # NaN is not JSON: a measure that returns one is told so by its worker, before it comes here
        line = json.dumps(result.model_dump(mode="python"), allow_nan=False, ensure_ascii=False)
        data = line.encode() + b"\n"
        if os.write(self._results, data) != len(data):
            raise OSError(f"{self.run.results_path}: the disk took only a part of a result line; is it full?")
        os.fsync(self._results)

    def _acquire(self) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                fcntl.flock(self.fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"another run is at work in {self.run.folder}; wait for it, or choose another folder with --out"
                    ) from None
                time.sleep(0.05)

    def _repair(self) -> None:
        """Finish or remove a last line that was torn, so that the next one starts on a line of its own."""
        assert self._results is not None
        _, torn = split_torn_line(self.run.results_path.read_bytes())
        if torn is None:
            return
        if torn and _is_json(torn):
            os.write(self._results, b"\n")
        else:
            os.ftruncate(self._results, os.fstat(self._results).st_size - len(torn))
        os.fsync(self._results)


def results_digest(folder: str | Path) -> str:
    """The SHA-256, in hex, of the bytes of a run's `results.jsonl`: what `sha256sum results.jsonl` prints.

    Of a run that has no results yet it is that of no bytes. Raises `RunError` if the folder holds no run.
    """
    run = Run(folder)
    if not run.results_path.is_file():
        run._require(run.suite_path)
        return hashlib.sha256().hexdigest()
    return hashlib.sha256(run.results_path.read_bytes()).hexdigest()


def same_data(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool | None:
    """Whether two trainings read the same batches in the same order, by the `data` of their metrics (see `DataHash`).

    One may have stopped before the other: they are compared after the greatest number of batches of which both have the
    hash, which is more than half of what the shorter one read. None where a hash was not recorded.
    """
    if one is None or other is None:
        return None
    ours, theirs = ({**dict(data["prefixes"]), data["batches"]: data["sha256"]} for data in (one, other))
    common = max(ours.keys() & theirs.keys(), default=None)
    return None if common is None else ours[common] == theirs[common]


def split_torn_line(data: bytes) -> tuple[list[bytes], bytes | None]:
    """The whole lines of a results file, and what follows the last newline (None if nothing does).

    A tail that only lacks its newline is whole: JSON objects are not valid before their last brace.
    """
    *lines, tail = data.split(b"\n")
    if not tail:
        return lines, None
    return ([*lines, tail] if _is_json(tail) else lines), tail


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes, so that a reader, or a run after a kill, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
