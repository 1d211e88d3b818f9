"""A run as tidy tables: one row for one measured thing, one column for one property."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..benchmarks.runs import Run, RunError
from . import about
from .lines import tidy
from .machines import Place, kind_of, machine_of, timed_kinds, told_apart
from .result import Result, Slimmer
from .section import Section, sections
from .variants import experiments

LONG = frozenset({"samples", "hits"})  # columns that results.jsonl holds, too long for a table


@dataclass(frozen=True, eq=False)
class RunData:
    """Everything a report is made of: what was asked, where it ran, and the results as tidy tables.

    frames: the tables by name, also as `run[name]`: those of the sections, and models, backends, failures, missing.
    Recall stands there of taught models only: those that passed the bar of their training, or had none.
    sections: in the order of the page. plan: the runner's list of cases; None for a run that kept none.
    places: variant -> where its numbers were taken, of what was timed on several kinds of machines; else empty.
    """

    folder: Path
    suite: dict[str, Any]
    environment: dict[str, Any]
    plan: dict[str, Any] | None
    lines: list[Result]
    layouts: list[str]
    sections: list[Section]
    frames: dict[str, pd.DataFrame]
    places: dict[str, Place] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.frames[name]

    @property
    def foreign_tool(self) -> str:
        """The tool that measured an imported run, of which nothing is claimed; "" for a run of our own."""
        if "foreign" not in self.environment:
            return ""
        said = self.environment["foreign"]
        return str((said.get("tool") if isinstance(said, dict) else None) or "another tool")

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Case -> the kind of machine that it ran on, where the cases of the run took several; else empty."""
        found = {line.case: kind_of(line, self.environment) for line in self.lines}
        return found if len(set(found.values())) > 1 else {}

    @cached_property
    def timed(self) -> dict[str, str]:
        """Case -> the kind of machine, of the cases whose numbers depend on it."""
        return timed_kinds(self.lines, self.environment, self.sections)

    @cached_property
    def machines(self) -> dict[str, list[Result]]:
        """Name of a machine -> the cases that it ran, of those that say it."""
        found: dict[str, list[Result]] = {}
        for line in self.lines:
            if name := machine_of(line).get("name"):
                found.setdefault(str(name), []).append(line)
        return found

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name, as they are written to CSV: without the answers one by one and the single rounds."""
        kept = {name: frame for name, frame in self.frames.items() if "hits" not in frame}
        return {name: self._written(frame) for name, frame in kept.items()}

    def _written(self, frame: pd.DataFrame) -> pd.DataFrame:
        short = frame.drop(columns=[c for c in frame if c in LONG])
        return short.assign(machine=short["case"].map(self.kinds)) if self.kinds and "case" in short else short


def read_run(folder: str | Path) -> RunData:
    """Read a run folder. Raises `RunError` if there is none, or a line of its results cannot be read."""
    with _uncollected():
        return _read(Run(folder))


def _read(run: Run) -> RunData:
    suite, lines = run.suite(), _results(run)
    if not isinstance(suite, dict):
        raise RunError(f"{run.suite_path} is not a suite; copy the suite that was run back to it")
    environment = run.environment() if run.environment_path.is_file() else {}
    plan = _read_plan(run.folder / "plan.json")
    try:
        return tabulate(run.folder, suite, environment, lines, plan)
    except (KeyError, TypeError) as error:
        message = f"{run.results_path} holds metrics of a form that this version does not know"
        raise RunError(f"{message} ({type(error).__name__}: {error}); run the suite again") from error


def tabulate(
    folder: Path,
    suite: dict[str, Any],
    environment: dict[str, Any],
    lines: list[Result],
    plan: dict[str, Any] | None = None,
    variants: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> RunData:
    """Turn result lines into tables, layouts in the order of the suite.

    variants: names of the experiments by case; default those that tell these lines apart. kinds: case -> the kind of
    machine that its variant is to name; default that of what was timed, if there are several.
    """
    planned = (plan or {}).get("cases", [])
    said = {str(case["case"]): str(case.get("what") or "") for case in planned}
    named = [*map(str, suite.get("layouts") or {}), *(str(c["layout"]) for c in planned), *(li.layout for li in lines)]
    layouts = list(dict.fromkeys(named))
    order = {label: i for i, label in enumerate(layouts)}
    lines = sorted(lines, key=lambda line: (order[line.layout], line.seed))
    shown = sections(line.measure for line in lines)
    if variants is None:
        variants = experiments(lines, {section.measure: section.alike for section in shown})
    if kinds is None:
        timed = timed_kinds(lines, environment, shown)
        kinds = timed if len(set(timed.values())) > 1 else {}
    variants, places = told_apart(variants, kinds, (line.case for line in lines))
    described = [(line, variants[line.case]) for line in lines]
    frames = {name: frame for section in shown for name, frame in section.frames(described).items()}
    frames["models"] = tidy(about.model_rows(lines, layouts), about.MODELS)
    frames["backends"] = tidy(about.backend_rows(lines), about.BACKENDS)
    more = [*about.recorded("peak_bytes", lines), *about.recorded("machine", lines)]
    frames["failures"] = tidy(about.failure_rows(lines, said), [*about.FAILURES, *more])
    frames["attempts"] = tidy(about.attempt_rows(lines, said), about.ATTEMPTS)
    frames["missing"] = tidy(about.missing_rows(plan, lines), about.MISSING)
    return RunData(folder, suite, environment, plan, lines, layouts, shown, frames, places)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing that is read is garbage yet, and looking for some among millions of values takes a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _results(run: Run) -> list[Result]:
    """The results of a run, each made slim as it is read."""
    slim = Slimmer()
    try:
        return [slim(line) for line in run.lines()]
    except RunError:
        raise
    except ValueError as error:
        raise RunError(f"{run.results_path} holds answers that this version does not know: {error}") from error


def _read_plan(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(plan["cases"], list) and isinstance(plan["final"], bool)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(f"{path} is not a plan of cases; run the suite again, which writes it anew") from error
    return plan
