"""Which cases of two runs measured the same thing: the same model, settings, text and, for speed, machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .change import Refused
from .formats import NOTHING
from .lines import case_text, choice_text, layout_line
from .machines import kind_of, timed_kinds, told_apart
from .result import Result
from .tables import RunData, tabulate
from .variants import experiments, purpose

_MACHINE = ("cpu", "physical_cores", "usable_cores", "memory_bytes")
Cases = dict[tuple, str]


@dataclass(frozen=True)
class Match:
    """Two runs with equal names for equal layouts and variants, and without what cannot be compared.

    before_cases, after_cases: (measure, layout, variant, seed, what) -> status.
    refused: what was taken out, and why. notes: what a reader should know of the match.
    """

    before: RunData
    after: RunData
    before_cases: Cases
    after_cases: Cases
    refused: list[Refused]
    notes: list[str]


def match(before: RunData, after: RunData) -> Match:
    """Match the cases of two runs."""
    labels = _labels(before.lines, after.lines)
    renamed = [replace(line, layout=labels.get(line.layout, line.layout)) for line in after.lines]
    known = {line.layout for line in before.lines}
    notes = [
        f"{new!r} is {old!r} of the first run: the same layout line and model."
        for new, old in labels.items()
        if old in known
    ]
    refused = {
        **_other_models(before.lines, renamed),
        **_other_texts(before.lines, renamed),
        **_other_machines(before, after, renamed),
    }
    sides = [[li for li in lines if _place(li) not in refused] for lines in (before.lines, renamed)]
    alike = {section.measure: section.alike for run in (before, after) for section in run.sections}
    variants = experiments([*sides[0], *sides[1]], alike)
    kinds = _kinds((before, after), sides)
    old, new = (
        tabulate(run.folder, run.suite, run.environment, lines, run.plan, variants, own)
        for run, lines, own in zip((before, after), sides, kinds)
    )
    cases = [_cases(li, told_apart(variants, own, (x.case for x in li))[0]) for li, own in zip(sides, kinds)]
    settings = _other_settings(*cases)
    said = [Refused(*place, why) for place, why in {**refused, **settings}.items()]
    kept = [{key: status for key, status in side.items() if key[:2] not in settings} for side in cases]
    return Match(old, new, kept[0], kept[1], said, notes)


def case_name(key: tuple) -> str:
    """A case for people."""
    measure, layout, variant, seed, what = key
    return ", ".join(part for part in (f"{layout}, {measure}", what, variant, f"seed {seed}") if part)


def _cases(lines: list[Result], variants: Mapping[str, str]) -> Cases:
    """Of several cases at one place, such as two loads of one length, the first that failed."""
    found: Cases = {}
    for line in lines:
        parts = [case_text(line) or str(line.parameters.get("lengths") or "").strip("[]")]
        parts += [choice_text(line.parameters.get("choice")), f"rung {line.parameters.get('rung')}"]
        what = ", ".join(part for part in parts[: 3 if line.measure == "tuning" else 1] if part)
        key = (line.measure, line.layout, variants[line.case], line.seed, what)
        if found.get(key, "ok") == "ok":
            found[key] = line.status
    return found


# --- Layouts ---


def _labels(before: list[Result], after: list[Result]) -> dict[str, str]:
    """New label -> the label of the first run, where one layout has two names: by its model, not by its name alone."""
    old, new = _models(before), _models(after)
    same = {label for label in new if new[label] & old.get(label, set())}
    free = [label for label in old if label not in same]
    renamed: dict[str, str] = {}
    for label in new:
        other = next((name for name in free if old[name] & new[label]), None) if label not in same else None
        if other is not None:
            renamed[label] = other
            free.remove(other)
    taken = set(renamed.values()) - renamed.keys() - same
    return {**renamed, **{label: f"{label} (the other model)" for label in new if label in taken}}


def _models(lines: list[Result]) -> dict[str, set[tuple[str, str]]]:
    """Label -> (what it was trained or measured for, its model) of all its cases."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in lines:
        found.setdefault(line.layout, set()).add((purpose(line), _canonical(_model(line))))
    return found


def _model(line: Result) -> dict[str, Any]:
    """The configuration of a model but for its seed; what is None is as good as left out."""
    model = dict(_flat(line.parameters.get("model") or {}))
    known = {key: value for key, value in model.items() if value is not None and key != "seed"}
    return {**known, "layout": layout_line(line)}


def _other_models(before: list[Result], after: list[Result]) -> dict[tuple[str, str], str]:
    """What has one name in both runs and is another model."""
    return _apart(before, after, _model, "another model")


def _apart(
    before: list[Result], after: list[Result], said: Callable[[Result], dict[str, Any]], what: str
) -> dict[tuple[str, str], str]:
    """Where no case of one run agrees with a case of the other in what `said` says of it, and how they differ."""
    sides: list[dict[tuple[str, str], dict[str, dict[str, Any]]]] = [{}, {}]
    for side, lines in zip(sides, (before, after)):
        for line in lines:
            facts = said(line)
            side.setdefault((line.measure, line.layout), {})[_canonical(facts)] = facts
    shared = [place for place in sides[0] if place in sides[1] and not sides[0][place].keys() & sides[1][place].keys()]
    return {p: f"{what}: {_differences(*(next(iter(side[p].values())) for side in sides))}" for p in shared}


# --- Text, machine, settings ---


def _other_texts(before: list[Result], after: list[Result]) -> dict[tuple[str, str], str]:
    """What was asked of other text."""
    read = [[line for line in lines if _text(line)] for lines in (before, after)]
    return _apart(read[0], read[1], _text, "another text")


def _text(line: Result) -> dict[str, Any]:
    text = (line.metrics or {}).get("text")
    return {"SHA-256": text["sha256"]} if isinstance(text, dict) and text.get("sha256") else {}


def _other_machines(before: RunData, after: RunData, renamed: list[Result]) -> dict[tuple[str, str], str]:
    """What was timed on another machine or with other threads, and whose memory was taken on another device.

    Where cases say on which kind of machine they ran, that decides.
    """
    said = any(line.machine for line in (*before.lines, *renamed))
    there = {id(line): run.environment for run, lines in ((before, before.lines), (after, renamed)) for line in lines}
    shown = [*before.sections, *after.sections]
    timed, held = (
        {section.measure for section in shown if section.holds_for == kind} for kind in ("one machine", "one device")
    )

    def where(line: Result) -> dict[str, Any]:
        if said and line.measure in timed | held:
            return {"machine": kind_of(line, there[id(line)]), **_settings(line)}
        if line.measure in timed:
            return {**_machine(there[id(line)]), **_settings(line)}
        return {"gpu": _gpu(there[id(line)]), "device": _settings(line)["device"]} if line.measure in held else {}

    return _apart(before.lines, renamed, where, "measured on another machine")


def _kinds(runs: Sequence[RunData], sides: Sequence[list[Result]]) -> list[dict[str, str]]:
    """Case -> kind of machine, of each run; empty where all that was timed in both was on one kind, or nothing says.

    A case that failed, nobody knows where, counts as one of the kind that it ran on in the other run.
    """
    found = [timed_kinds(lines, run.environment, run.sections) for run, lines in zip(runs, sides)]
    if not any(line.machine for lines in sides for line in lines):
        return [{}, {}]
    several = len({kind for own in found for kind in own.values()}) > 1
    return [{**found[1], **found[0]}, {**found[0], **found[1]}] if several else [{}, {}]


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    machine = environment.get("machine") or {}
    return {**{name: machine.get(name) for name in _MACHINE}, "gpu": _gpu(environment)}


def _gpu(environment: dict[str, Any]) -> str | None:
    return (environment.get("gpu") or {}).get("name")


def _settings(line: Result) -> dict[str, Any]:
    known = {"device": str(line.parameters.get("device", "")).split(":")[0], "threads": line.parameters.get("threads")}
    return {**known, "tf32": bool(line.parameters.get("tf32"))}


def _other_settings(before: Cases, after: Cases) -> dict[tuple[str, str], str]:
    """What both runs measured of a layout, but never with the same settings."""
    found = {}
    old, new = (_variants(cases) for cases in (before, after))
    for place in [place for place in old if place in new and not old[place] & new[place]]:
        names = [" or ".join(sorted(name or "plain" for name in side[place])) for side in (old, new)]
        found[place] = f"other settings: {names[0]} before; {names[1]} after"
    return found


def _variants(cases: Cases) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for measure, layout, variant, _, _ in cases:
        if measure != "tuning":
            found.setdefault((measure, layout), set()).add(variant)
    return found


def _place(line: Result) -> tuple[str, str]:
    return line.measure, line.layout


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_text_of(old.get(name))} and {_text_of(new.get(name))}" for name in names)


def _text_of(value: Any) -> str:
    return NOTHING if value is None else str(value)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
