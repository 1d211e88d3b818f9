"""The mixer contract over the zoo: what `mixerzoo check --all` found, where, and how long it took."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..mixers import CheckReport, check_mixer
from ..mixers.contract.checks import CHECKS
from .environment import collect_environment

MARKS = {"passed": "+", "failed": "X", "skipped": "-"}


@dataclass(frozen=True)
class Entry:
    """One mixer: its report, or the error that kept it from having one."""

    mixer: str
    seconds: float
    report: CheckReport | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.report is not None and self.report.passed

    @property
    def marks(self) -> dict[int, str]:
        """Status by number of the check; all failed where the mixer cannot be checked."""
        return dict.fromkeys(CHECKS, "failed") if self.report is None else {r.number: r.status for r in self.report}

    def to_dict(self) -> dict[str, Any]:
        found = {"results": [], "passed": False} if self.report is None else self.report.to_dict()
        return {**found, "mixer": self.mixer, "seconds": self.seconds, "error": self.error}


@dataclass
class ContractRun:
    """The contract of some mixers on one machine. device: where it is checked once more, None for its accelerator."""

    device: str | None
    compile_backend: str
    environment: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, device: str | None, compile_backend: str) -> ContractRun:
        """A run on this machine."""
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        place = device or (accelerator.type if accelerator else "cpu")
        return cls(device, compile_backend, collect_environment(device=place, jobs=1, threads=torch.get_num_threads()))

    def check(self, mixer: str, numbers: list[int] | None, survive: bool) -> None:
        """Check one; what its constructor raises is an entry, too, where the run shall `survive` it."""
        start = time.perf_counter()
        report, problem = None, None
        try:
            report = check_mixer(
                mixer, device=self.device, only=numbers, compile_backend=self.compile_backend, raise_on_failure=False
            )
        except Exception as error:
            if not survive:
                raise
            problem = f"{type(error).__name__}: {error}"
        self.entries.append(Entry(mixer, round(time.perf_counter() - start, 2), report, problem))

    @property
    def passed(self) -> bool:
        return all(entry.passed for entry in self.entries)

    @property
    def seconds(self) -> float:
        return round(sum(entry.seconds for entry in self.entries), 1)

    @property
    def titles(self) -> dict[int, str]:
        """Titles of the checks that ran, by number."""
        ran = {number for entry in self.entries if entry.report is not None for number in entry.marks}
        return {number: title for number, (title, _) in CHECKS.items() if number in ran}

    @property
    def summary(self) -> str:
        kept = sum(entry.passed for entry in self.entries)
        titles = ", ".join(f"{number} {title}" for number, title in self.titles.items())
        marks = ", ".join(f"{mark} {status}" for status, mark in MARKS.items())
        compiled = f"; compiled with {self.compile_backend}" if 11 in self.titles else ""
        return f"{kept} of {len(self.entries)} keep the contract, in {self.seconds:.0f} s{compiled}. {marks}. {titles}."

    def write(self, folder: Path) -> None:
        """`check.json`, with everything, and `check.md`, a table and what failed."""
        folder.mkdir(parents=True, exist_ok=True)
        whole = {
            "passed": self.passed,
            "seconds": self.seconds,
            "compile_backend": self.compile_backend,
            "environment": self.environment,
            "mixers": [entry.to_dict() for entry in self.entries],
        }
        (folder / "check.json").write_text(json.dumps(whole, indent=1) + "\n")
        (folder / "check.md").write_text(self.markdown() + "\n")

    def markdown(self) -> str:
        """The table of the console as Markdown, the machine above it, what failed below."""
        numbers = list(self.titles)
        packages = ", ".join(f"{name} {version}" for name, version in self.environment["packages"].items() if version)
        gpus = ", ".join(str(gpu.get("name")) for gpu in self.environment["gpus"])
        where = f"On {self.environment['device']}{f' ({gpus})' if gpus else ''}, with {packages}."
        lines = [
            "# The mixer contract",
            "",
            self.summary,
            "",
            where,
            "",
            f"| mixer | {' | '.join(map(str, numbers))} | seconds |",
            f"| --- |{' --- |' * (len(numbers) + 1)}",
        ]
        for entry in self.entries:
            cells = " | ".join(MARKS[entry.marks[number]] for number in numbers)
            lines.append(f"| {entry.mixer} | {cells} | {entry.seconds:.1f} |")
        for entry in self.entries:
            if entry.error is not None:
                lines += ["", f"**{entry.mixer}**: {entry.error}"]
            for result in entry.report.failures if entry.report is not None else ():
                lines += ["", f"**{entry.mixer}**, {result.number} {result.title}: {result.reason}"]
        return "\n".join(lines)
