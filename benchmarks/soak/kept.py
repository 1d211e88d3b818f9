"""What must be true of a run's folder after whatever was done to its processes."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import yaml

from ..case import Case
from ..result_lines import ResultLine, decode_line, is_torn
from ..runs import Run
from .cases import Note, SoakPlanner, metrics_of


class Broken(Exception):
    """A promise was broken; the message says which, and how it is seen."""


class Kept:
    """Watches one folder: what was once in its results stays, and what is done is not done again.

    journal: what the cases write of themselves. killed: ids of cases that were killed, which
    their results may say. unknown: how many more were killed before they had said who they are.
    """

    def __init__(self, run: Run, planner: SoakPlanner, journal: Path) -> None:
        self.run, self.planner, self._journal = run, planner, journal
        self.killed: set[str] = set()
        self.unknown = 0
        self._cases = planner.cases
        self._ids = {case.seed: case.id for case in self._cases.values()}
        self._whole = b""
        self._heard = 0

    def results(self) -> dict[str, ResultLine]:
        """Those that are in the file now, by case. Raises `Broken` if a line but the last one is torn or wrong."""
        *lines, tail = self._read().split(b"\n")
        if tail and not is_torn(tail):
            raise Broken(f"the results end in what is no torn line: {tail[:200]!r}")
        found: dict[str, ResultLine] = {}
        for number, line in enumerate(lines, start=1):
            try:
                result = decode_line(line)
            except ValueError as error:
                raise Broken(f"line {number} of the results {error}: {line[:200]!r}") from None
            if result.case in found:
                raise Broken(f"case {result.case} is in the results twice")
            found[result.case] = result
        return found

    def notes(self) -> list[Note]:
        """The journal so far."""
        if not self._journal.is_file():
            return []
        *lines, _ = self._journal.read_text().split("\n")
        return [Note.read(line) for line in lines]

    def check(self) -> None:
        """Raise `Broken` unless everything is as it was, or more."""
        data = self._read()
        if not data.startswith(self._whole):
            raise Broken(f"results that were there are gone or changed: {len(self._whole)} bytes were, {len(data)} are")
        before = set(self._done_before())
        results = self.results()
        self._check_outcomes(results)
        self._check_files()
        notes = self.notes()
        again = {note.case for note in notes[self._heard :] if note.what == "start" and note.case in before}
        if again:
            raise Broken(f"cases {sorted(again)} had a result, and were started once more")
        self._whole, self._heard = data[: data.rfind(b"\n") + 1], len(notes)

    def check_end(self, temporary: Path) -> None:
        """Raise `Broken` unless the run is complete, and nothing is left of it but what belongs there."""
        self.check()
        results = self.results()
        plan = self.planner(results)
        if not plan.final or (missing := {case.id for case in plan.cases} - results.keys()):
            raise Broken(f"the runner ended well, but cases are missing: {missing if plan.final else 'more to come'}")
        if len(self.killed) + self.unknown < sum(result.status != "ok" for result in results.values()):
            raise Broken("more cases failed than were killed")
        # a fork server that is killed together with its runner leaves its socket
        strange = self._strange_files() + [p.name for p in temporary.iterdir() if not p.name.startswith("pymp-")]
        if strange:
            raise Broken(f"files are left over: {', '.join(strange)}")
        self._check_alone()

    def check_unlocked(self) -> None:
        """Raise `Broken` if somebody holds the lock of the run."""
        path = self.run.folder / ".lock"
        if path.exists():
            with path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Broken("nobody is there, but the lock is held") from None

    def _read(self) -> bytes:
        return self.run.results_path.read_bytes() if self.run.results_path.is_file() else b""

    def _done_before(self) -> list[int]:
        return [self._cases[json.loads(line)["case"]].seed for line in self._whole.splitlines()]

    def _check_outcomes(self, results: dict[str, ResultLine]) -> None:
        for result in results.values():
            case = self._cases.get(result.case)
            if case is None:
                raise Broken(f"nobody asked for the case {result.case}")
            if result.status == "ok":
                if result.metrics != metrics_of(case):
                    raise Broken(f"case {case.seed} says {result.metrics}, undisturbed {metrics_of(case)}")
            elif result.status != "out_of_memory" or "SIGKILL" not in str(result.error):
                raise Broken(f"case {case.seed} is {result.status}, nobody did that to it: {result.error}")
            elif result.case not in self.killed and not self.unknown:
                raise Broken(f"case {case.seed} is {result.status}, and was not killed: {result.error}")

    def _check_files(self) -> None:
        readers: dict[str, Callable[[str], object]] = {"suite.yaml": yaml.safe_load}
        readers |= dict.fromkeys(["environment.json", "plan.json", "status.json"], json.loads)
        for name, read in readers.items():
            path = self.run.folder / name
            if path.exists():
                try:
                    whole = isinstance(read(path.read_text()), dict)
                except (ValueError, yaml.YAMLError):
                    whole = False
                if not whole:
                    raise Broken(f"{name} is not whole: {path.read_text()[:200]!r}")

    def _strange_files(self) -> list[str]:
        known = {".lock", "suite.yaml", "environment.json", "plan.json", "status.json", "results.jsonl"}
        known |= {f"checkpoints/{case}/state.json" for case in self._cases}
        files = (path for path in self.run.folder.rglob("*") if not path.is_dir())
        return [name for path in files if (name := path.relative_to(self.run.folder).as_posix()) not in known]

    def _check_alone(self) -> None:
        """Nothing was noted by others while an exclusive case was at work that came to its end."""
        notes = [note for note in self.notes() if note.case >= 0]
        starts = {(note.case, note.pid): note.seconds for note in notes if note.what == "start"}
        for end in (note for note in notes if note.what == "end" and self._cases[self._ids[note.case]].exclusive):
            span = starts[end.case, end.pid], end.seconds
            beside = {n.case for n in notes if n.case != end.case and span[0] <= n.seconds <= span[1]}
            if beside:
                raise Broken(f"case {end.case} wants to be alone, and {sorted(beside)} ran beside it")


def case_of(kept: Kept, pid: int) -> Case | None:
    """Which case the process runs, from the journal; None if it has not said so yet."""
    number = next((note.case for note in reversed(kept.notes()) if note.pid == pid and note.what == "start"), None)
    return next((case for case in kept.planner.cases.values() if case.seed == number), None)
