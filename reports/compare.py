"""Two runs compared: what both measured in the same way, number by number, and what cannot be compared, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..benchmarks.runs import RunError, results_digest
from . import formats
from .change import Change, Refused, judged
from .compare_lines import Match, case_name, match
from .tables import RunData, read_run

TOLERANCE = 0.05  # by how much all layouts must have moved alike for a warning, unless a tolerance is given
_FEWEST_LAYOUTS = 3
_LONG = 120  # characters of a list of layouts
_SETTINGS = ("device", "threads", "jobs", "python")


@dataclass(frozen=True)
class Comparison:
    """Run `after` compared with run `before`.

    changes: those that tell most first, each with its verdict. failed, recovered: cases that ended ok in one run only.
    only_before, only_after: (measure, layout) -> how many cases the other run has not. context: what differs between
    the runs beside their results: name -> (before, after). warnings: what makes the comparison doubtful.
    """

    before: Path
    after: Path
    changes: list[Change]
    failed: list[str]
    recovered: list[str]
    refused: list[Refused]
    only_before: dict[tuple[str, str], int]
    only_after: dict[tuple[str, str], int]
    context: dict[str, tuple[str, str]]
    warnings: list[str]

    def having(self, *verdicts: str) -> list[Change]:
        """The changes with one of these verdicts, the greatest first."""
        found = [change for change in self.changes if change.verdict in verdicts]
        return sorted(found, key=lambda change: -abs(change.change))

    def beyond(self, tolerance: float) -> int:
        """How many regressions count against a tolerance: cases that fail now, and numbers worse by more than it."""
        return len(self.failed) + sum(change.worse > tolerance for change in self.having("regression"))


def compare(before: Path, after: Path, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two run folders, `before` being the baseline.

    Raises `RunError` where one cannot be read, holds results of another tool, or where they have nothing in common
    that can be compared; the message says what differs.
    """
    old, new = _read(before), _read(after)
    found = match(old, new)
    measured = {section.measure for section in found.after.sections}
    shared = [section for section in found.before.sections if section.measure in measured]
    results = [item for section in shared for item in section.compare(found.before, found.after)]
    refused = [*found.refused, *(item for item in results if isinstance(item, Refused))]
    compared = judged([item for item in results if isinstance(item, Change)])
    failed, recovered = _outcomes(found, ok_before=True), _outcomes(found, ok_before=False)
    if not compared and not failed and not recovered:
        raise RunError(_nothing(before, after, old, new, refused))
    return Comparison(
        before=before,
        after=after,
        changes=compared,
        failed=failed,
        recovered=recovered,
        refused=refused,
        only_before=_missing(found.before_cases, found.after_cases),
        only_after=_missing(found.after_cases, found.before_cases),
        context=_context(old, new),
        warnings=[*found.notes, *_other_data(found), *_warnings(found, old, new, compared, tolerance)],
    )


def _read(folder: Path) -> RunData:
    run = read_run(folder)
    if "foreign" in run.environment:
        foreign = run.environment["foreign"]
        tool = foreign.get("tool", "another tool") if isinstance(foreign, dict) else "another tool"
        raise RunError(f"{folder} holds results of {tool}: they were not measured as ours are, so nothing is claimed")
    if not run.lines:
        raise RunError(
            f"{folder} has no results yet; run it first, or go on with it: mixerzoo run SUITE --out {folder}"
        )
    return run


# --- Cases ---


def _outcomes(found: Match, ok_before: bool) -> list[str]:
    """The cases that ended ok in one run only: those that fail now, or those that failed before."""
    named = []
    for key, states in found.before_cases.items():
        now = found.after_cases.get(key)
        if now is not None and (states == "ok") == ok_before and (now == "ok") != ok_before:
            named.append(f"{case_name(key)}: {now.replace('_', ' ')}, was {states.replace('_', ' ')}")
    return named


def _missing(own: dict[tuple, str], others: dict[tuple, str]) -> dict[tuple[str, str], int]:
    return dict(Counter((str(key[0]), str(key[1])) for key in own if key not in others))


def _nothing(before: Path, after: Path, old: RunData, new: RunData, refused: list[Refused]) -> str:
    """Why two runs have nothing in common."""
    why = grouped(refused)
    for name, sides in {
        "measures": [sorted({line.measure for line in run.lines}) for run in (old, new)],
        "layouts": [sorted({line.layout for line in run.lines}) for run in (old, new)],
    }.items():
        if not set(sides[0]) & set(sides[1]):
            lists = [formats.shorten(", ".join(side), _LONG) for side in sides]
            why.append(f"{name}: {lists[0]} before; {lists[1]} after")
    said = "\n".join(f"  {reason}" for reason in why) or "  no case of one has the settings of a case of the other"
    return f"{before} and {after} have nothing in common that can be compared:\n{said}"


def grouped(refused: list[Refused]) -> list[str]:
    """`speed: measured on another machine: threads 1 and 2 (softmax, linear)`, a line for each reason."""
    found: dict[str, list[str]] = {}
    for item in refused:
        layouts = found.setdefault(f"{item.measure}: {item.why}", [])
        layouts += [item.layout] if item.layout not in layouts else []
    return [f"{why} ({', '.join(layouts)})" for why, layouts in found.items()]


# --- What else differs ---


def _context(old: RunData, new: RunData) -> dict[str, tuple[str, str]]:
    """What differs between two runs beside their results."""
    sides = [dict(_facts(run)) for run in (old, new)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    pairs = {name: (sides[0].get(name, "not known"), sides[1].get(name, "not known")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _facts(run: RunData) -> Iterator[tuple[str, str]]:
    environment = run.environment
    source, machine = environment.get("source") or {}, environment.get("machine") or {}
    yield "suite", str(run.suite.get("name"))
    yield "started", str(environment.get("started", "not known"))
    dirty = " with changes that are not in it" if source.get("dirty") else ""
    yield "commit", f"{str(source.get('commit', 'not known'))[:12]}{dirty}"
    yield from ((name, str(environment.get(name, "not known"))) for name in _SETTINGS)
    yield from ((name, str(machine.get(name, "not known"))) for name in ("host", "cpu", "usable_cores", "os"))
    if kinds := sorted(set(run.kinds.values())):
        yield "kinds of machines", "; ".join(kinds)
    yield from ((name, str(version)) for name, version in (environment.get("packages") or {}).items())


def _warnings(found: Match, old: RunData, new: RunData, compared: list[Change], tolerance: float) -> Iterator[str]:
    hosts = [_hosts(run) for run in (old, new)]
    if hosts[0] != hosts[1] and any(change.unit.startswith("seconds") for change in compared):
        yield f"The hosts have different names ({hosts[0]} and {hosts[1]}); speeds hold only if it is one machine."
    if found.before.places or found.after.places:
        yield (
            "The runs took several kinds of machines: what was timed is compared within one kind; cases of which the "
            "other run has no result on that kind are left out, and counted below."
        )
    if results_digest(old.folder) == results_digest(new.folder):
        yield "Both runs hold the same results, line by line."
    yield from _drift(compared, tolerance)
    yield from _copying(old, new, tolerance)
    for run in (old, new):
        if (run.plan or {}).get("final") is False or len(run["missing"]):
            yield f"{run.folder} is not finished: cases of its plan have no result."


def _hosts(run: RunData) -> str:
    """The names of the machines that took part."""
    names = sorted(run.environment.get("machines") or {})
    return formats.listing(names) if names else str((run.environment.get("machine") or {}).get("host"))


def _drift(compared: list[Change], tolerance: float) -> Iterator[str]:
    """Whether all layouts moved alike, which is more likely the machine than the code."""
    moved: dict[str, list[float]] = {}
    for change in compared:
        if change.measure == "speed":
            moved.setdefault(change.layout, []).append(change.change)
    typical = [median(values) for values in moved.values()]
    if len(typical) >= _FEWEST_LAYOUTS and (min(typical) > tolerance or max(typical) < -tolerance):
        way = f"{abs(median(typical)):.0%} {'slower' if typical[0] > 0 else 'faster'}"
        yield (
            f"All {len(typical)} layouts are {way} alike: that is the machine, or what all of them share, rather than "
            "any one of them. Rounds of one run do not show how a machine drifts between runs; measures that time "
            "things in turn do without that."
        )


def _copying(old: RunData, new: RunData, tolerance: float) -> Iterator[str]:
    """Whether copying memory, timed beside the ops, took another time."""
    sides = [_rates(run) for run in (old, new)]
    if all(len(side) for side in sides):
        rates = [median(side) for side in sides]
        ratio = rates[1] / rates[0]
        if abs(math.log(ratio)) > math.log1p(tolerance):
            yield (
                f"Copying memory, timed beside the ops, is {ratio:.2f} times as fast as before "
                f"({formats.si(rates[0], 'B/s')}, then {formats.si(rates[1], 'B/s')}): the machine "
                "was not the same, or not as busy."
            )


def _rates(run: RunData) -> list[float]:
    found = [(line.metrics or {}).get("copy_bandwidth") for line in run.lines]
    return [float(rate["median"]) for rate in found if isinstance(rate, dict) and rate.get("median")]


def _other_data(found: Match) -> Iterator[str]:
    """Whether models that are compared were trained on other data, where both runs recorded its hash."""
    sides: list[dict[tuple[str, int], str]] = []
    for run in (found.before, found.after):
        trained = [(line, (line.metrics or {}).get("data")) for line in run.lines if line.measure == "training"]
        sides.append({(line.layout, line.seed): data["sha256"] for line, data in trained if isinstance(data, dict)})
    differ = {key[0] for key in sides[0] if sides[1].get(key, sides[0][key]) != sides[0][key]}
    if differ:
        yield f"Trained on other data, or in another order: {', '.join(sorted(differ))}."


def count(counts: dict[tuple[str, str], int]) -> Iterable[str]:
    """`speed: 12 cases of softmax, 3 of linear`."""
    measures: dict[str, list[str]] = {}
    for (measure, layout), number in counts.items():
        measures.setdefault(measure, []).append(f"{number} of {layout}")
    return [f"{measure}: {', '.join(parts)}" for measure, parts in measures.items()]


def summary_line(found: Comparison) -> dict[str, Any]:
    """Verdict -> how many numbers have it."""
    counted = Counter(change.verdict for change in found.changes)
    return {name: counted[name] for name in ("regression", "gain", "changed", "equal", "cannot tell") if counted[name]}
