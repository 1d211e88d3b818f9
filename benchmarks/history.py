"""What earlier runs took: the cases that a forecast goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .device import kind_of
from .forecast import read_forecast
from .machine import kind_of_machine
from .rates import Rates
from .runs import Run, RunError

MOST_CASES = 20_000  # that are read, the newest runs first


@dataclass(frozen=True)
class Past:
    """A case that ended well. parameters: of its measure. threads, kind: how many it had, and of what kind of machine.

    peak_bytes: that its processes held, None where it was not recorded. line_bytes: of its line in the results.
    """

    case: str
    layout: str
    measure: str
    model: dict[str, Any]
    parameters: dict[str, Any]
    seconds: float
    threads: int
    device: str
    kind: str
    peak_bytes: int | None
    line_bytes: int


@dataclass(frozen=True)
class History:
    """cases: of all runs, each once. rates: by kind of machine, and by threads and precision. runs: their folders.

    unread: folders that were passed over, and why.
    """

    cases: tuple[Past, ...] = ()
    rates: Mapping[str, Mapping[str, Rates]] | None = None
    runs: tuple[Path, ...] = ()
    unread: tuple[str, ...] = ()


def usual_folders() -> list[Path]:
    """The runs in the folder `runs`, newest first, and those that are published with a checkout."""
    published = Path(__file__).resolve().parents[1] / "reports" / "published"
    own = [path.parent for path in Path("runs").glob("*/results.jsonl")]
    own.sort(key=lambda folder: -(folder / "results.jsonl").stat().st_mtime)
    return own + sorted((path.parent for path in published.glob("*/results.jsonl")), reverse=True)


def read_history(folders: Sequence[Path]) -> History:
    """What the runs in `folders` took. A folder that cannot be read is named, and passed over."""
    cases: dict[tuple[str, float], Past] = {}
    rates: dict[str, dict[str, Rates]] = {}
    runs, unread, left = [], [], MOST_CASES
    for folder in folders:
        run = Run(folder)
        try:
            found = list(_cases_of(run, left))
            forecast = read_forecast(run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            unread.append(f"{folder}: {error or type(error).__name__}")
            continue
        runs.append(folder)
        left -= len(found)
        cases |= {(past.case, past.seconds): past for past in found}  # what a run took over from another counts once
        if forecast is not None:
            rates.setdefault(forecast.kind, {}).update(forecast.rates)
    return History(tuple(cases.values()), rates, tuple(runs), tuple(unread))


def _cases_of(run: Run, most: int) -> Iterator[Past]:
    """The last cases of a run that ended well."""
    environment = json.loads(run.environment_path.read_bytes())
    if "foreign" in environment:
        raise RunError("another tool measured it")
    kind = kind_of_machine(environment["machine"], environment.get("gpu"))
    heads = [head for head in run.index().values() if head.status == "ok"][-most:] if most > 0 else []
    for head, result in zip(heads, run.lines(heads), strict=True):
        yield Past(
            case=result.case,
            layout=result.layout,
            measure=result.measure,
            model=result.parameters["model"],
            parameters=result.parameters,
            seconds=result.seconds,
            threads=int(result.parameters["threads"]),
            device=kind_of(result.parameters["device"]),
            kind=(result.machine or {}).get("kind") or kind,
            peak_bytes=result.peak_bytes,
            line_bytes=head.size,
        )
