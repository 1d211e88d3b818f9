"""What a run keeps in its folder `slurm/`, so that neither the runner's end nor a job's loses anything.

`batches/TOKEN.json`: the cases of one array, written before it is submitted, and its jobs, once they are known.
`starts/NAME.jsonl`: when a job began with a case and was told to stop. The first line is a claim: who writes it may run
the case, and a runner that cannot know whether its submission arrived writes it itself, so that no job will.
`news/NAME.json`, `ended/NAME.json`: what the case says of itself, and what became of it. `settled.txt`: the names of
which nothing more is expected. `submitit/`: scripts, logs and pickles; the last are read by jobs alone, never here.

NAME is a case's id and the token of its batch. One runner writes batches and `settled.txt`; it holds the run's lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..machine import Machine
from ..runs import STATUSES, RunError, write_atomically
from .base import Ended, Lost, News

_ENDED, _LOST, _NEWS, _MACHINE = TypeAdapter(Ended), TypeAdapter(Lost), TypeAdapter(News), TypeAdapter(Machine)
_REVOKED = json.dumps({"revoked": True}) + "\n"
_FOLDERS = ("batches", "starts", "news", "ended", "submitit")


class Batch(BaseModel):
    """Cases that were submitted together. jobs: Slurm's ids, in the order of the cases; None until they are known."""

    model_config = ConfigDict(frozen=True)

    token: str = Field(pattern="^[0-9a-f]{8}$")
    cluster: str
    cases: list[str]
    jobs: list[str] | None = None

    @property
    def names(self) -> list[str]:
        return [f"{case}-{self.token}" for case in self.cases]


@dataclasses.dataclass(frozen=True)
class Start:
    """A job began with a case. stopped: when and why it was told to stop, None if it was not."""

    job: str
    pid: int
    time: float
    machine: Machine
    stopped: tuple[float, str] | None = None


class Notes:
    """The folder `slurm/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settled_path = folder / "settled.txt"

    @property
    def submitit(self) -> Path:
        """Where submitit works."""
        return self.folder / "submitit"

    def make(self) -> None:
        """Make the folder, for its owner alone: jobs run what they find there."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in _FOLDERS:
            (self.folder / name).mkdir(exist_ok=True)

    # the runner's side

    def batches(self) -> list[Batch]:
        """All batches of which something is still expected; the others are cleared away. Raises `RunError`."""
        settled, found = self._settled(), []
        for path in sorted((self.folder / "batches").glob("*.json")):
            try:
                batch = Batch.model_validate_json(path.read_bytes())
            except ValidationError:
                raise RunError(
                    f"{path} is damaged, and jobs that it names may be at work; see `squeue --name "
                    f"mixerzoo-{path.stem}`, cancel them, then remove the file"
                ) from None
            if set(batch.names) <= settled:
                path.unlink()
            else:
                found.append(batch)
        known = {name for batch in found for name in batch.names}
        write_atomically(self._settled_path, "".join(f"{name}\n" for name in sorted(settled & known)))
        return found

    def open_names(self, batch: Batch) -> list[tuple[int, str]]:
        """Places in the batch, and names, of which something is still expected."""
        settled = self._settled()
        return [(place, name) for place, name in enumerate(batch.names) if name not in settled]

    def write_batch(self, batch: Batch) -> None:
        write_atomically(self.folder / "batches" / f"{batch.token}.json", batch.model_dump_json())

    def settle(self, names: Iterable[str], keep_starts: bool = False) -> None:
        """Expect nothing more of these. keep_starts: jobs may still come, and are to see that they may not begin."""
        names = list(names)
        if not names:
            return
        with self._settled_path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{name}\n" for name in names))
            file.flush()
            os.fsync(file.fileno())
        for name in names:
            for path in (self._news(name), self._ended(name), *(() if keep_starts else (self._starts(name),))):
                path.unlink(missing_ok=True)

    def ended_names(self) -> set[str]:
        """Of which it is known what became of them."""
        with contextlib.suppress(OSError):
            return {entry.name.removesuffix(".json") for entry in os.scandir(self.folder / "ended") if _is_whole(entry)}
        return set()

    def outcome(self, name: str) -> Ended | Lost | None:
        """What became of it, None if that is not known. Raises `ValueError` if it cannot be read."""
        try:
            data = json.loads(self._ended(name).read_bytes())
        except FileNotFoundError:
            return None
        if isinstance(data, dict) and data.get("lost"):
            return _LOST.validate_python(data["lost"])
        ended = _ENDED.validate_python(data["ended"] if isinstance(data, dict) else None)
        if ended.outcome.get("status") not in STATUSES:
            raise ValueError("it has no status")
        return ended

    def news(self, seen: dict[str, float]) -> list[tuple[str, News]]:
        """What was said since the last call. seen: when what is known was written, by name; kept up to date."""
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder / "news"):
                with contextlib.suppress(OSError, ValueError):  # losing news never harms
                    name = entry.name.removesuffix(".json")
                    if _is_whole(entry) and (written := entry.stat().st_mtime) != seen.get(name):
                        found.append((name, _NEWS.validate_python(json.loads(Path(entry.path).read_bytes()))))
                        seen[name] = written
        return found

    def forbid_unbegun(self, name: str) -> bool:
        """See to it that no job begins with it; False if one has."""
        if self._claim(name, _REVOKED):
            return True
        if not self.starts(name)[0]:  # told to stop before it had begun, or a line that was torn
            _append(self._starts(name), _REVOKED)
        return not self.starts(name)[0]

    def forbid(self, name: str) -> None:
        """See to it that no job begins with it, or begins again."""
        if not self._claim(name, _REVOKED):
            _append(self._starts(name), _REVOKED)

    # both sides

    def starts(self, name: str) -> tuple[list[Start], bool]:
        """Every start, in turn, and whether there may be more."""
        found: list[Start] = []
        allowed = True
        try:
            lines = self._starts(name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return [], True
        for line in lines:
            try:
                event = json.loads(line)
                if "machine" in event:
                    machine = _MACHINE.validate_python(event["machine"])
                    found.append(Start(str(event["job"]), int(event["pid"]), float(event["time"]), machine))
                elif "why" in event and found and found[-1].stopped is None:
                    found[-1] = dataclasses.replace(found[-1], stopped=(float(event["time"]), str(event["why"])))
                allowed = allowed and "revoked" not in event
            except (ValueError, KeyError, TypeError):
                continue  # a line that was torn when its job was killed
        return found, allowed

    # the job's side

    def begin(self, name: str, job: str, machine: Machine) -> list[Start] | None:
        """Begin with a case as `job`; the starts of it before. None if the job has no right to."""
        if not (self.folder / "starts").is_dir():
            raise FileNotFoundError(
                f"{machine.name} does not see {self.folder}: the run must lie on a file system that all machines "
                "share, at the same path"
            )
        start = {"job": job, "pid": os.getpid(), "time": time.time(), "machine": dataclasses.asdict(machine)}
        line = json.dumps(start, ensure_ascii=False) + "\n"
        if self._claim(name, line):
            return []
        before, allowed = self.starts(name)
        if not allowed or any(start.job != job for start in before) or self._ended(name).exists():
            return None
        _append(self._starts(name), line)
        return before

    def note_stop(self, name: str, why: str) -> None:
        _append(self._starts(name), json.dumps({"why": why, "time": time.time()}) + "\n")

    def write_news(self, name: str, news: News) -> None:
        with contextlib.suppress(OSError):  # losing news never harms
            path = self._news(name)
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(json.dumps(dataclasses.asdict(news)), encoding="utf-8")
            temporary.replace(path)

    def write_outcome(self, name: str, outcome: Ended | Lost) -> None:
        kind = "ended" if isinstance(outcome, Ended) else "lost"
        text = json.dumps({kind: dataclasses.asdict(outcome)}, ensure_ascii=False, allow_nan=False)
        write_atomically(self._ended(name), text)

    def last_sign(self, name: str) -> float | None:
        """When its news were written last."""
        with contextlib.suppress(OSError):
            return self._news(name).stat().st_mtime
        return None

    def _claim(self, name: str, line: str) -> bool:
        """Write the first line of `starts`; False if there is one."""
        try:
            descriptor = os.open(self._starts(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(descriptor)
        return True

    def _settled(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return set(self._settled_path.read_text(encoding="utf-8").split())
        return set()

    def _starts(self, name: str) -> Path:
        return self.folder / "starts" / f"{name}.jsonl"

    def _news(self, name: str) -> Path:
        return self.folder / "news" / f"{name}.json"

    def _ended(self, name: str) -> Path:
        return self.folder / "ended" / f"{name}.json"


def interruptions(starts: list[Start]) -> list[dict[str, Any]]:
    """Starts that were told to stop, as `ResultLine.attempts` has them."""
    return [
        {
            "machine": start.machine.name,
            "ended": datetime.fromtimestamp(start.stopped[0], timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(max(0.0, start.stopped[0] - start.time), 3),
            "why": start.stopped[1],
        }
        for start in starts
        if start.stopped is not None
    ]


def _is_whole(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".json") and not entry.name.startswith(".")


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
