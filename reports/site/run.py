"""A run as the site knows it: its data under a name of the site's own, and what the pages say of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ...benchmarks.runs import RunError, results_digest
from .. import formats
from ..finding import Finding
from ..summary import summary
from ..tables import RunData, read_run
from ..taught import statements
from ..verdict import findings
from .names import page_name, short_hash

RAW = ("suite.yaml", "environment.json", "plan.json", "results.jsonl")  # what a run is; all else is made from it
_GIB = 2**30


@dataclass(frozen=True)
class Answer:
    """What a run says to one question: `said` stands for a winner where there is one, else for what is open.

    evidence: id of the element of its report that shows it, "" for none.
    """

    topic: str
    said: str
    value: str
    evidence: str


@dataclass(frozen=True, eq=False)
class SiteRun:
    """A run of the site. name: of its folder there; digest: SHA-256 of its results, in hexadecimal digits."""

    name: str
    digest: str
    data: RunData

    @property
    def suite(self) -> str:
        return str(self.data.suite.get("name") or self.name)

    @property
    def page(self) -> str:
        """What the pages of its suite are called, without a suffix."""
        return page_name(self.suite)

    @property
    def sentence(self) -> str:
        """The first sentence of its suite's description."""
        text = " ".join(str(self.data.suite.get("description") or "").split())
        return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0]

    @cached_property
    def machine(self) -> str:
        """Processor, usable cores, memory and, where it ran on one, GPU: what speeds of two runs must share.

        Of a run on several kinds of machines all of them, so that only runs on the same kinds stand side by side.
        """
        if kinds := sorted(set(self.data.kinds.values())):
            return f"{len(kinds)} kinds of machines: {'; '.join(kinds)}"
        known, gpu = _mapping(self.data.environment.get("machine")), _mapping(self.data.environment.get("gpu"))
        cores, memory = known.get("usable_cores"), known.get("memory_bytes")
        words = [
            str(known.get("cpu") or "processor not known"),
            *([f"{cores} core{'' if cores == 1 else 's'}"] if cores else []),
            *([f"{round(memory / _GIB)} GiB"] if isinstance(memory, int | float) else []),
            *([str(gpu["name"])] if gpu.get("name") else []),
        ]
        return ", ".join(words) if known or gpu else "machine not known"

    @property
    def machine_id(self) -> str:
        return f"machine-{short_hash(self.machine)}"

    @property
    def device(self) -> str:
        return str(self.data.environment.get("device") or "not known")

    @cached_property
    def started(self) -> datetime | None:
        """When the run began, in UTC; None where that is not known."""
        try:
            began = datetime.fromisoformat(str(self.data.environment.get("started")).replace("Z", "+00:00"))
            return began.replace(tzinfo=began.tzinfo or timezone.utc).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            return None

    @property
    def date(self) -> str:
        return self.started.strftime("%Y-%m-%d %H:%M UTC") if self.started else "date not known"

    @property
    def order(self) -> tuple[str, str]:
        """Sorts runs by their beginning, those of unknown date first."""
        return (self.started.isoformat() if self.started else "", self.name)

    @property
    def commit(self) -> str | None:
        commit = _mapping(self.data.environment.get("source")).get("commit")
        return str(commit) if commit else None

    @property
    def dirty(self) -> bool:
        return bool(_mapping(self.data.environment.get("source")).get("dirty"))

    @property
    def source(self) -> str:
        """The commit in words, and whether the source had changes beside it."""
        known = f"commit {self.commit[:12]}" if self.commit else "commit not known"
        return f"{known}, with uncommitted changes" if self.dirty else known

    @property
    def foreign(self) -> dict[str, Any] | None:
        """Where the numbers of another tool came from; None for a run of mixerzoo."""
        found = self.data.environment.get("foreign")
        return _mapping(found) if found is not None else None

    @property
    def incomplete(self) -> str:
        """What is missing, "" for nothing."""
        plan, missing = self.data.plan, self.data["missing"]
        if plan is None:
            return "" if self.foreign is not None else "kept no plan of its cases, so some may be missing"
        if len(missing):
            lacking, planned = int((missing["expected"] - missing["found"]).sum()), len(plan["cases"])
            return f"not complete: {lacking} of {planned} planned cases have no result"
        return "" if plan["final"] else "not complete: not all of its cases are planned yet"

    @cached_property
    def findings(self) -> list[Finding]:
        """The answers of the run; none of a foreign one, whose numbers are never part of a claim."""
        return [] if self.foreign is not None else findings(self.data)

    @cached_property
    def untaught(self) -> list[str]:
        return [] if self.foreign is not None else statements(self.data)

    @cached_property
    def answers(self) -> list[Answer]:
        """One answer a topic; where several findings share a topic, as bars do, how many of them said what."""
        topics: dict[str, list[Finding]] = {}
        for finding in self.findings:
            topics.setdefault(finding.topic, []).append(finding)
        return [_answer(topic, found) for topic, found in topics.items()]

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """The pooled numbers of the run, as in its `summary.csv`."""
        return summary(self.data)

    @property
    def preview(self) -> str | None:
        """The chart of recall, else of the first answer that has one, else any: its path in the run's folder."""
        drawn = sorted(file.stem for file in (self.data.folder / "figures").glob("*.svg"))
        shown = [f.evidence.removeprefix("figure-") for f in self.findings if f.evidence.startswith("figure-")]
        best = next((name for name in ("recall", *shown, *drawn) if name in drawn), None)
        return f"figures/{best}.svg" if best else None

    @cached_property
    def _elements(self) -> set[str]:
        """The ids on the page of its report."""
        return set(re.findall(r'\bid="([^"]+)"', (self.data.folder / "report.html").read_text(encoding="utf-8")))

    def evidence(self, element: str) -> str:
        """`#element` if its report has that, else nothing."""
        return f"#{element}" if element in self._elements else ""


def read_site_run(folder: Path, name: str, named: str | Path) -> SiteRun:
    """The run in `folder`, called `named` in messages. Raises `RunError` if anything about it cannot be read."""
    try:
        data = read_run(folder)
        if not data.environment:
            raise RunError("it has no environment.json, so nothing says where it was measured")
        if not data.lines:
            raise RunError("it has no result yet")
        run = SiteRun(name, results_digest(folder), data)
        _ = run.findings, run.numbers, run.untaught, run.incomplete
        return run
    except Exception as error:  # whatever a damaged run stumbles over, the run has to be named
        said = str(error).replace(f"{folder}/", "").replace(str(folder), str(named))
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise RunError(f"{named}: {kind}{said}") from error


def _answer(topic: str, found: list[Finding]) -> Answer:
    first = found[0]
    if len(found) == 1:
        return Answer(topic, first.winner or first.open, first.value if first.winner else "", first.evidence)
    said = [f.winner or f.open for f in found]
    counts = formats.listing([f"{said.count(word)} {word}" for word in dict.fromkeys(said)])
    return Answer(topic, counts, "", first.evidence)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
