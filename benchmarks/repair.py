"""Mends a run's folder: every result that can be is kept, what was there before stays beside it, and nothing is
invented.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .environment import utc_time
from .errors import RunError
from .files import partial_files, storage_error, write_atomically
from .lock import FolderLock
from .result_lines import DamagedLine, HeadReader, LineHead, is_torn, pieces
from .runs import Run, is_plan
from .schema import SCHEMA_VERSION, SchemaError
from .status import STATUS_FILE, read_status

_CASE = re.compile(rb'"case": "([0-9a-zA-Z]{1,64})"')
_OF_A_RESULT = re.compile(rb'"(case|layout|measure|parameters|backends|metrics)": ')


@dataclass(frozen=True)
class Found:
    """Something that was wrong. where: the file, and the line of it. what: is wrong. done: about it, or what to do.

    lost: whether something is lost that was there before.
    """

    where: str
    what: str
    done: str
    lost: bool = False


@dataclass
class Repaired:
    """What a repair did, or would do. again: titles of the cases whose results are lost, and that will run again."""

    found: list[Found] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is there that was there before the damage."""
        return not any(found.lost for found in self.found)


def repair(run: Run, dry_run: bool = False) -> Repaired:
    """Mend what is damaged in a run's folder; dry_run: only say what would be done.

    A file is only touched if it is damaged, and then kept as it was as `NAME.damaged-1`, or the next free number.
    Raises `RunError` if the folder holds no run or another process is at work in it, `StorageError` if it cannot be
    written to.
    """
    files = (run.suite_path, run.environment_path, run.results_path)
    if not any(path.is_file() for path in files):
        raise RunError(f"{run.folder} holds no run: it has none of {', '.join(path.name for path in files)}")
    lock = FolderLock(run.folder)
    if not dry_run:
        lock.acquire()
    try:
        return _Repair(run, dry_run).all()
    finally:
        lock.release()


class _Repair:
    """One file after the other, the results before what is made of them."""

    def __init__(self, run: Run, dry_run: bool) -> None:
        self.run, self.dry_run = run, dry_run
        self.report = Repaired()
        self.suite: dict[str, Any] | None = None
        self.heads: dict[str, LineHead] = {}

    def all(self) -> Repaired:
        self._suite()
        self._results()
        self._environment()
        self._plan()
        self._status()
        self._checkpoints()
        self._leftovers()
        return self.report

    def _found(self, where: str, what: str, done: str, lost: bool = False) -> None:
        self.report.found.append(Found(where, what, done, lost))

    # --- What was asked ---

    def _suite(self) -> None:
        try:
            self.suite = self.run.suite()
        except RunError:
            what = "is damaged" if self.run.suite_path.exists() else "is missing"
            elsewhere = "start the same suite with --out in another folder, and copy the suite.yaml that it writes here"
            self._found("suite.yaml", what, f"it cannot be made of anything else: {elsewhere}", lost=True)

    # --- What was measured ---

    def _results(self) -> None:
        if not self.run.results_path.is_file():
            return
        kept = _Lines(self.suite)
        with self.run.results_path.open("rb") as file:
            try:
                kept.read(file)
            except SchemaError as error:
                self._found(f"results.jsonl:{kept.number}", str(error), "nothing was changed in this file", lost=True)
                return
            self.heads = kept.heads
            self.report.found += kept.found
            self.report.again += [self._title(case) for case in kept.lost]
            if kept.found and not self.dry_run:
                original = keep_original(self.run.results_path)
                self._write_lines(file, kept.spans)
                count = len(kept.spans)
                self._found("results.jsonl", f"{count} lines are in it now", f"the file of before is {original.name}")

    def _title(self, case: str | None) -> str:
        """What is known of a case whose line is lost."""
        if case is None:
            return "a case whose id cannot be read"
        said = self._planned_before.get(case, {})
        about = " ".join(str(said[name]) for name in ("layout", "measure", "what") if said.get(name))
        return f"case {case}" + (f", {about}" if about else "") + (f", seed {said['seed']}" if "seed" in said else "")

    @functools.cached_property
    def _planned_before(self) -> dict[str, dict[str, Any]]:
        plan = _json(self.run.plan_path)
        return {planned["case"]: planned for planned in plan["cases"]} if is_plan(plan) else {}

    def _write_lines(self, file: IO[bytes], spans: list[tuple[int, int]]) -> None:
        """Those parts of the file that are whole lines, each with a newline, in place of it."""
        path = self.run.results_path

        def write(target: IO[bytes]) -> None:
            for offset, size in spans:
                file.seek(offset)
                target.write(file.read(size) + b"\n")

        write_atomically(path, write)

    # --- Where it was measured ---

    def _environment(self) -> None:
        path = self.run.environment_path
        if not path.exists() and not self.heads:
            return
        try:
            self.run.environment()
            return
        except RunError as error:
            if isinstance(_json(path), dict):  # of a newer version
                self._found("environment.json", str(error), "nothing was changed in it", lost=True)
                return
        whole = _leading_object(path)
        if whole is not None:
            self._replace(path, "has something after its end", "cut off", whole)
        elif not self.heads:
            self._replace(path, "is damaged", "set aside: the next start of the run writes it anew", None)
        else:
            what = "is damaged" if path.exists() else "is missing"
            done = "made anew of what the results say; commit, versions and command are lost"
            self._replace(path, what, done, self._rebuilt_environment(), lost=True)

    def _rebuilt_environment(self) -> dict[str, Any]:
        """What the results say of where they were measured, and that more is not known."""
        from .cards import describe_mixers

        devices, machines = Counter[str](), dict[str, Any]()
        for line in () if self.dry_run else self.run.lines():
            devices[str(line.parameters.get("device", "cpu"))] += 1
            if line.machine is not None:
                machines.setdefault(str(line.machine.get("name")), {"kind": line.machine.get("kind")})
        layouts = (self.suite or {}).get("layouts")
        return {
            "schema_version": SCHEMA_VERSION,
            "rebuilt": utc_time()[:10],
            "device": devices.most_common(1)[0][0] if devices else "cpu",
            "machines": machines,
            **describe_mixers(layouts if isinstance(layouts, dict) else {}),
            "resumed": [],
        }

    # --- What follows from these ---

    def _plan(self) -> None:
        path = self.run.plan_path
        if not path.exists() or is_plan(_json(path)):
            return
        plan = None if self.dry_run else self._planned()
        if plan is None:
            self._replace(path, "is damaged", "set aside: the next start of the run writes it anew", None)
        else:
            self._replace(path, "is damaged", "made anew of the suite and the results", plan)

    def _planned(self) -> dict[str, Any] | None:
        """The plan of the whole suite; None where that cannot be made here."""
        from .known import known_results
        from .plan import Planner
        from .suite import load_suite

        try:
            device = self.run.environment()["device"]
            return Planner(load_suite(str(self.run.suite_path)), device)(known_results(self.run)).to_json()
        except (ValueError, KeyError, OSError):  # an imported run, mixers or measures that are not installed
            return None

    def _status(self) -> None:
        try:
            read_status(self.run)
        except RunError:
            path = self.run.folder / STATUS_FILE
            self._replace(path, "is damaged", "set aside: a runner writes it anew", None)

    def _checkpoints(self) -> None:
        """Models and resume points that are not what their checksums say; whoever needs one makes it again."""
        there = self.run.folder / "checkpoints"
        names = ("SHA256SUMS", "resume.sha256")
        sums = sorted(path for name in names for path in there.rglob(name)) if there.is_dir() else []
        if not sums:
            return
        from ..models.checksums import check_sum, read_sums  # imports torch

        for path in sums:
            try:
                for name, sha256 in (read_sums(path.parent, path.name) or {}).items():
                    check_sum(path.parent, name, sha256)
            except (ValueError, OSError) as error:
                where = str(path.parent.relative_to(self.run.folder))
                done = "left as it is: a training that is needed again starts from its beginning"
                self._found(where, f"is damaged ({error})", done, lost=True)

    def _leftovers(self) -> None:
        old = re.compile(r"\.(suite\.yaml|environment\.json|plan\.json|status\.json)\.\d+")
        left = [path for path in self.run.folder.iterdir() if old.fullmatch(path.name)]
        for path in sorted([*left, *partial_files(self.run.folder)]):
            self._found(path.name, "was left by a process that was killed while it wrote", "removed")
            if not self.dry_run:
                path.unlink(missing_ok=True)

    def _replace(self, path: Path, what: str, done: str, content: dict[str, Any] | None, lost: bool = False) -> None:
        """Another content for a file, or none; the one of before is kept."""
        if not self.dry_run:
            original = keep_original(path) if path.exists() else None
            if content is not None:
                write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            else:
                path.unlink()
            done += f"; the file of before is {original.name}" if original else ""
        self._found(path.name, what, done, lost)


class _Lines:
    """What can be kept of a file of results. spans: offset and size of every line to keep; heads: those lines by case;
    number: of the line that was read last."""

    def __init__(self, suite: dict[str, Any] | None) -> None:
        layouts = (suite or {}).get("layouts")
        self._layouts = {str(label) for label in layouts} if isinstance(layouts, dict) and layouts else None
        self._head_of = HeadReader()
        self._digests: set[bytes] = set()
        self.heads: dict[str, LineHead] = {}
        self.spans: list[tuple[int, int]] = []
        self.number = 0
        self._notes: list[tuple[str, str, str, Sequence[str | None]]] = []

    def read(self, file: IO[bytes]) -> None:
        """All of it. Raises `SchemaError` for a line of a newer version, which is line `number`."""
        offset, torn = 0, None
        for self.number, line in enumerate(file, start=1):
            whole = line.removesuffix(b"\n")
            if whole is line and is_torn(whole):
                torn = whole
            else:
                self._line(whole, offset)
            offset += len(line)
        if torn is not None and self._notes:  # alone it is no damage: whoever writes next removes it
            self._note("was cut off when its writer was killed", "dropped")

    def _line(self, line: bytes, offset: int) -> None:
        try:
            self._keep(line, offset)
        except DamagedLine as error:
            self._salvage(line, offset, str(error))

    def _keep(self, line: bytes, offset: int) -> None:
        """Keep a line, unless it is there already, or of another run. Raises `DamagedLine`."""
        head = self._head_of(line, self.number, offset)
        digest = hashlib.blake2b(line, digest_size=16).digest()
        if self._layouts is not None and head.layout not in self._layouts:
            self._note(f"is of another run: the suite has no layout {head.layout!r}", "dropped")
        elif digest in self._digests:
            self._note(f"is there twice, case {head.case}", "dropped")
        else:
            self._digests.add(digest)
            self.spans.append((offset, len(line)))
            self.heads[head.case] = head

    def _salvage(self, line: bytes, offset: int, error: str) -> None:
        kept, garbage = 0, 0
        lost: list[str | None] = []
        for whole, part in pieces(line):
            if whole is not None:
                self._keep(whole, offset)
                kept += 1
            else:
                garbage += len(part)
                if _OF_A_RESULT.search(part):
                    case = _CASE.search(part)
                    lost.append(case[1].decode() if case else None)
            offset += len(part)
        what = "is empty" if not line else error if not kept else f"holds what is no result ({error})"
        rest = f", {garbage:,} bytes dropped" if garbage else ""
        self._note(what, f"{kept} result{'s' * (kept != 1)} taken out of it{rest}" if kept else "dropped", lost)

    def _note(self, what: str, done: str, lost: Sequence[str | None] = ()) -> None:
        self._notes.append((f"results.jsonl:{self.number}", what, done, lost))

    @property
    def found(self) -> list[Found]:
        """What was wrong; of a case that has another line nothing is lost."""
        return [
            Found(where, what, done, any(case not in self.heads for case in lost))
            for where, what, done, lost in self._notes
        ]

    @property
    def lost(self) -> list[str | None]:
        """The ids of the cases whose results are lost, None where it cannot be read."""
        cases = dict.fromkeys(case for *_, lost in self._notes for case in lost)
        return [case for case in cases if case not in self.heads]


def keep_original(path: Path) -> Path:
    """Keep a file under a name that is free, `NAME.damaged-1` and so on; returns it."""
    for kept in _free_names(path):
        try:
            try:
                os.link(path, kept)
            except FileExistsError:
                continue
            except OSError:  # a file system without links
                with kept.open("xb") as target, path.open("rb") as source:
                    shutil.copyfileobj(source, target)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(kept, error) from error
        return kept
    raise AssertionError("numbers do not end")


def _free_names(path: Path) -> Iterator[Path]:
    number = 1
    while True:
        kept = path.with_name(f"{path.name}.damaged-{number}")
        if not kept.exists():
            yield kept
        number += 1


def _json(path: Path) -> Any:
    """What stands in a file; None if that is no JSON, or there is none."""
    try:
        return json.loads(str(path.read_bytes(), "utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _leading_object(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file begins with, whatever comes after it."""
    try:
        found, _ = json.JSONDecoder().raw_decode(path.read_bytes().decode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
