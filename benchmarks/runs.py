"""The run store: a folder that holds what was asked (`suite.yaml`), where it ran (`environment.json`), the cases that
are known so far (`plan.json`), and one JSON line for every finished case (`results.jsonl`). Killed at whatever moment,
no finished case is lost or doubled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import yaml

from .errors import RunError, StorageError
from .files import FULL, storage_error, write_atomically
from .lock import FolderLock
from .result_lines import (
    STATUSES,
    DamagedLine,
    HeadReader,
    LineHead,
    ResultLine,
    Status,
    decode_line,
    encode_line,
    is_torn,
    is_whole,
)
from .schema import SCHEMA_VERSION, SchemaError, migrate_environment
from .yamlfile import SuiteError, YamlFile

__all__ = [
    "SCHEMA_VERSION",
    "STATUSES",
    "Index",
    "LineHead",
    "ResultLine",
    "Results",
    "Run",
    "RunError",
    "RunLock",
    "Status",
    "results_digest",
    "same_data",
    "write_atomically",
]

_RESERVE_BYTES = 1 << 20  # kept for the result that finds the disk full: more than any line takes
_BLOCK_BYTES = 1 << 16


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

    @property
    def has_results(self) -> bool:
        """Whether there is any line of results."""
        return self.results_path.is_file() and self.results_path.stat().st_size > 0

    @property
    def repair(self) -> str:
        """The command that mends it."""
        return f"`mixerzoo repair {shlex.quote(str(self.folder))}`"

    def checkpoint_folder(self, case: str) -> Path:
        """Where a case keeps its checkpoints; made by the case that needs it."""
        return self.folder / "checkpoints" / case

    def suite(self) -> dict[str, Any]:
        """The resolved suite. Raises `RunError` if the folder holds no run, or a damaged suite."""
        self._require(self.suite_path)
        try:
            return dict(YamlFile.read(self.suite_path).data)
        except SuiteError:
            raise RunError(
                f"{self.suite_path} is damaged, it is not a suite; {self.repair} says what can be done"
            ) from None

    def environment(self) -> dict[str, Any]:
        """The machine and the software that the run was made with, and its mixers, see `describe_mixers`.

        Reading one of schema version 1 imports torch, to look the mixers up. Raises `RunError` if there is none.
        """
        data = self._environment()
        try:
            return migrate_environment(data, self._layouts)
        except SchemaError as error:
            raise RunError(f"{self.environment_path} {error}") from None

    def index(self) -> dict[str, LineHead]:
        """What is known of each finished case without reading what was measured, in the order of `results`.

        Quick, and small: of 100,000 results it holds 40 MB. Raises as `results`.
        """
        return Index(self).update()

    def lines(self, heads: Iterable[LineHead] | None = None) -> Iterator[ResultLine]:
        """The results, or those of `heads` in their order, each read when it is asked for; else as `results`."""
        with contextlib.ExitStack() as stack:
            file = self._open_results(stack)
            if file is None:
                return
            for head in Index(self).read(file).values() if heads is None else heads:
                file.seek(head.offset)
                try:
                    result = decode_line(file.read(head.size))
                except (DamagedLine, SchemaError) as error:
                    raise self._line_error(head.number, error) from None
                yield result

    def results(self) -> list[ResultLine]:
        """The finished cases in the order in which each first finished; of a case that ran again, the last line.

        All of them at once: of many, read `lines`. A last line that was torn by a kill is passed over.
        Raises `RunError` for any other line that is no result.
        """
        return list(self.lines())

    def locked(self) -> RunLock:
        """A context in which this process is the only one that adds results."""
        return RunLock(self)

    def write_suite(self, suite: dict[str, Any]) -> None:
        text = yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=110)
        write_atomically(self.suite_path, text)

    def write_environment(self, environment: dict[str, Any]) -> None:
        write_atomically(self.environment_path, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")

    def plan(self) -> dict[str, Any] | None:
        """The cases that are known: `final` (no result can add any) and `cases`; None for a run that kept no plan.

        Raises `RunError` for a damaged one.
        """
        if not self.plan_path.is_file():
            return None
        plan = _read_json(self.plan_path)
        if not is_plan(plan):
            raise RunError(f"{self.plan_path} is damaged, it is not a plan of cases; {self.repair} mends it")
        return plan

    def write_plan(self, plan: dict[str, Any]) -> None:
        write_atomically(self.plan_path, json.dumps(plan, ensure_ascii=False) + "\n")

    def _environment(self) -> dict[str, Any]:
        """What stands in `environment.json`, of whatever version."""
        self._require(self.environment_path)
        data = _read_json(self.environment_path)
        if not isinstance(data, dict):
            raise RunError(
                f"{self.environment_path} is not a JSON object; copy the one that the run was made with back, or "
                f"{self.repair} writes one that says that it was lost"
            )
        return data

    def _layouts(self) -> dict[str, str]:
        """The layout lines of the suite by label; none without a suite."""
        layouts = self.suite().get("layouts") if self.exists else None
        return layouts if isinstance(layouts, dict) else {}

    def _require(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"{self.folder} holds no run: it has no {path.name}; make one with `mixerzoo run SUITE`")

    def _open_results(self, stack: contextlib.ExitStack) -> IO[bytes] | None:
        """The file of results; None if a run has none yet."""
        if not self.results_path.is_file():
            self._require(self.suite_path)
            return None
        return stack.enter_context(self.results_path.open("rb", buffering=_BLOCK_BYTES))

    def _line_error(self, number: int, error: DamagedLine | SchemaError) -> RunError:
        """An error of a line, with where it stands and what to do."""
        todo = f"; {self.repair} mends it, and keeps the file as it is now" if isinstance(error, DamagedLine) else ""
        return RunError(f"{self.results_path}:{number} {error}{todo}")


class Index:
    """The heads of a run's results, kept up to date without reading again what was read before."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._begin(None)

    def _begin(self, file: tuple[int, int] | None) -> None:
        """Know nothing of the file that the device and the inode name."""
        self._file, self._number, self._offset = file, 0, 0
        self._found: dict[str, LineHead] = {}
        self._heads_of = HeadReader()

    def update(self) -> dict[str, LineHead]:
        """See `Run.index`."""
        with contextlib.ExitStack() as stack:
            file = self.run._open_results(stack)
            return {} if file is None else self.read(file)

    def read(self, file: IO[bytes]) -> dict[str, LineHead]:
        """The same of a file that is open already."""
        there = os.fstat(file.fileno())
        if self._file != (there.st_dev, there.st_ino) or there.st_size < self._offset:
            self._begin((there.st_dev, there.st_ino))
        file.seek(self._offset)
        for line in file:
            whole = line.removesuffix(b"\n")
            if whole is line and is_torn(whole):
                break
            try:
                head = self._heads_of(whole, self._number + 1, self._offset)
            except (DamagedLine, SchemaError) as error:
                raise self.run._line_error(self._number + 1, error) from None
            self._found[head.case] = head
            if whole is line:  # its newline may still come
                break
            self._number, self._offset = self._number + 1, self._offset + len(line)
        return self._found


class Results(Sequence[ResultLine]):
    """The results of `heads` in their order, each read from its run when it is asked for."""

    def __init__(self, run: Run, heads: Sequence[LineHead]) -> None:
        self.run, self.heads = run, heads

    def __len__(self) -> int:
        return len(self.heads)

    @overload
    def __getitem__(self, which: int) -> ResultLine: ...
    @overload
    def __getitem__(self, which: slice) -> list[ResultLine]: ...
    def __getitem__(self, which: int | slice) -> ResultLine | list[ResultLine]:
        if isinstance(which, slice):
            return list(self.run.lines(self.heads[which]))
        return next(self.run.lines([self.heads[which]]))

    def __iter__(self) -> Iterator[ResultLine]:
        return self.run.lines(self.heads)

    def failed(self) -> Results:
        """Those that are not `ok`."""
        return Results(self.run, [head for head in self.heads if head.status != "ok"])


class RunLock:
    """The right to add results, from `Run.locked()`. Held by the open file `fileno`, so the kernel takes it back when
    this process dies; a child that inherits `fileno` keeps it until it is gone as well. Raises `RunError` if another
    holds it, or the folder cannot be written to.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = FolderLock(run.folder)
        self._results: int | None = None
        self._reserve = run.folder / ".reserve"

    @property
    def fileno(self) -> int:
        return self._lock.fileno

    def __enter__(self) -> RunLock:
        try:
            self._lock.acquire()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._results = os.open(self.run.results_path, flags, 0o644)
            _sync_folder(self.run.folder)
            self._mend_tail()
            self._keep_reserve()
        except OSError as error:
            self.__exit__()
            raise storage_error(self.run.results_path, error) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._results is not None:
            self._reserve.unlink(missing_ok=True)
            os.close(self._results)
            self._results = None
        self._lock.release()

    def append(self, result: ResultLine) -> None:
        """Add one result; when this returns, the line is on the disk. Raises `StorageError` if it cannot be, and then
        nothing of it stays; if the disk is full, room was kept for it, and the error says that it was stored."""
        assert self._results is not None, "the lock is not held"
        data = encode_line(result.model_dump(mode="python"))
        self._lock.check()
        try:
            self._write(data)
        except OSError as error:
            if error.errno in FULL and self._write_into_reserve(data):
                said = f"{self.run.folder}: the disk is full; the result that was just measured was still stored"
                raise StorageError(f"{said}; free some space, then start again") from error
            raise storage_error(self.run.results_path, error) from error

    def _write(self, data: bytes) -> None:
        """All of `data` at the end of the results, on the disk; or, if that fails, nothing of it."""
        assert self._results is not None
        size = os.fstat(self._results).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._results, rest) :]
            os.fsync(self._results)
        except OSError:
            with contextlib.suppress(OSError):  # what then stays is torn: the next writer removes it
                os.ftruncate(self._results, size)
            raise

    def _write_into_reserve(self, data: bytes) -> bool:
        """Whether the room that was kept was enough."""
        try:
            self._reserve.unlink()
            self._write(data)
        except OSError:
            return False
        return True

    def _keep_reserve(self) -> None:
        """Take room on the disk, so that a result that was measured finds some when it is full."""
        with contextlib.suppress(OSError, AttributeError):  # full already, or a system that cannot
            descriptor = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
            finally:
                os.close(descriptor)

    def _mend_tail(self) -> None:
        """Finish or remove a last line that was torn, so that the next one starts on a line of its own."""
        assert self._results is not None
        tail = _tail(self._results)
        if not tail:
            return
        if is_whole(tail):
            os.write(self._results, b"\n")
        elif is_torn(tail):
            os.ftruncate(self._results, os.fstat(self._results).st_size - len(tail))
        else:
            raise RunError(f"{self.run.results_path} does not end with a result; {self.run.repair} mends it")
        os.fsync(self._results)


def results_digest(folder: str | Path) -> str:
    """The SHA-256, in hex, of the bytes of a run's `results.jsonl`: what `sha256sum results.jsonl` prints.

    Of a run that has no results yet it is that of no bytes. Raises `RunError` if the folder holds no run.
    """
    run, digest = Run(folder), hashlib.sha256()
    with contextlib.ExitStack() as stack:
        file = run._open_results(stack)
        while file is not None and (block := file.read(_BLOCK_BYTES)):
            digest.update(block)
    return digest.hexdigest()


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


def is_plan(plan: Any) -> bool:
    """Whether it is what `plan.json` holds: `final`, and `cases` with their ids, layouts and measures."""
    if not isinstance(plan, dict) or not isinstance(plan.get("final"), bool) or not isinstance(plan.get("cases"), list):
        return False
    named = ("case", "layout", "measure")
    return all(isinstance(case, dict) and all(isinstance(case.get(n), str) for n in named) for case in plan["cases"])


def _read_json(path: Path) -> Any:
    """What stands in a file; None if that is no JSON."""
    try:
        return json.loads(str(path.read_bytes(), "utf-8"))
    except (ValueError, RecursionError):
        return None


def _tail(descriptor: int) -> bytes:
    """What follows the last newline of a file."""
    start = os.fstat(descriptor).st_size
    tail = b""
    while start > 0 and b"\n" not in tail:
        size = min(_BLOCK_BYTES, start)
        start -= size
        tail = os.pread(descriptor, size, start) + tail
    return tail.rpartition(b"\n")[2]


def _sync_folder(folder: Path) -> None:
    """Have a new file still be there after the power is lost."""
    with contextlib.suppress(OSError):  # some systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
