"""The history of the micro benchmarks: one line of JSON for each, appended by `make micro` after a clean end.

python -m mixerzoo.benchmarks.micro_history build/micro.json benchmarks/micro/history.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .runs import write_atomically

SCHEMA_VERSION = 1
ABOUT_SESSION = "mixerzoo"  # where the JSON of pytest-benchmark has what the whole session shares
HISTORY = Path(__file__).parent / "micro" / "history.jsonl"
_DIGITS = 4  # of a time: more than any two runs have in common

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HistoryError(ValueError):
    """A history, or what was to be appended to it, that cannot be read; the message says what to do."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quartiles(_Model):
    """Of times in seconds."""

    median: Seconds
    q1: Seconds
    q3: Seconds


class Machine(_Model):
    """What times are compared on. cores: physical ones that the process might use; threads: of torch; gpu: its name,
    None where the CPU did the work."""

    cpu: str | None
    cores: int
    threads: int
    gpu: str | None


class MicroRecord(Quartiles):
    """One micro benchmark at one commit on one machine; times in seconds.

    commit, dirty, committed: the source, whether it had changes, and when it was committed; None outside a checkout.
    time: when it ended, UTC. group, name: those of pytest-benchmark. variant: the case of the op, "" for the plain one.
    direction: `forward`, or `train` for forward and backward. length: tokens. reference: causal attention of one fixed
    size, timed just before the group in the same process. load: of the machine then, processes over the last minute;
    None where the system does not say.
    """

    schema_version: int = SCHEMA_VERSION
    commit: str | None
    dirty: bool | None
    committed: str | None
    time: str
    machine: Machine
    torch: str
    group: str
    name: str
    op: Annotated[str, Field(pattern=r"^\w+$")]  # names files
    variant: str
    backend: str
    direction: str
    length: int
    dtype: str
    rounds: int
    reference: Quartiles
    load: float | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a later record of the same replaces."""
        return self.commit, self.dirty, self.machine, self.name


def read_records(path: Path) -> list[MicroRecord]:
    """The records of a history, none if there is no file. Raises `HistoryError` for a line that is no record."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def append(session: Path, history: Path) -> list[MicroRecord]:
    """Append what pytest-benchmark wrote of a session to a history, in place of what the same commit and machine said
    before of the same benchmarks; return the new records. Raises `HistoryError` if either cannot be read."""
    new = records_of(session)
    replaced = {record.key for record in new}
    kept = [record for record in read_records(history) if record.key not in replaced]
    lines = [json.dumps(record.model_dump(), ensure_ascii=False) for record in (*kept, *new)]
    write_atomically(history, "".join(f"{line}\n" for line in lines))
    return new


def records_of(session: Path) -> list[MicroRecord]:
    """The records in the JSON that pytest-benchmark wrote. Raises `HistoryError` where it holds none."""
    try:
        said = json.loads(session.read_text(encoding="utf-8"))
        shared, benchmarks = said["machine_info"][ABOUT_SESSION], said["benchmarks"]
        time = _utc(said["datetime"])
        records = [_record(found, {**shared, "time": time}) for found in benchmarks]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise HistoryError(f"{session} is no finished session of `make micro` ({problem}); run it again") from error
    if not records:
        raise HistoryError(f"{session} holds no benchmark: all were skipped or left out; run `make micro` again")
    return records


def state_of_source() -> dict[str, Any]:
    """`commit`, `dirty` and `committed` of `MicroRecord`. The history itself may have changed: it is no source."""
    from .environment import source
    from .gpus import output_of

    root = Path(__file__).resolve().parents[1]
    commit = (source() or {}).get("commit")
    if commit is None:
        return {"commit": None, "dirty": None, "committed": None}
    changes = output_of(["git", "-C", str(root), "status", "--porcelain", "--", ".", f":!{HISTORY.relative_to(root)}"])
    committed = output_of(["git", "-C", str(root), "show", "-s", "--format=%cI", commit])
    return {"commit": commit, "dirty": bool(changes), "committed": committed}


def _record(found: Mapping[str, Any], shared: Mapping[str, Any]) -> MicroRecord:
    stats = found["stats"]
    times = {name: _rounded(stats[name]) for name in Quartiles.model_fields}
    said = {name: found[name] for name in ("group", "name")}
    extra = found["extra_info"]
    reference = {name: _rounded(value) for name, value in extra["reference"].items()}
    counted = {"rounds": stats["rounds"], "reference": reference}
    return MicroRecord.model_validate({**shared, **said, **extra, **times, **counted})


def _utc(written: str) -> str:
    """pytest-benchmark 4 leaves out that its times are UTC."""
    time = datetime.fromisoformat(written)
    time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    return time.isoformat(timespec="seconds")


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{_DIGITS}g}")


def _parse(line: str, where: str) -> MicroRecord:
    try:
        data = json.loads(line)
    except ValueError:
        raise HistoryError(f"{where} is not JSON; remove that line") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise HistoryError(f"{where} has schema version {version}, and this mixerzoo reads {SCHEMA_VERSION}: update it")
    try:
        return MicroRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise HistoryError(f"{where} is no record of a micro benchmark: {field}: {first['msg']}") from None


def main(session: Path, history: Path) -> None:
    """Append SESSION, as pytest-benchmark wrote it, to HISTORY."""
    added = append(session, history)
    print(f"{len(added)} records at {(added[0].commit or 'no commit')[:12]} are in {history}")


if __name__ == "__main__":
    import typer

    typer.run(main)
