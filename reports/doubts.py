"""Where a comparison was not the same for all: what a sceptical reader of a report would doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..benchmarks.runs import same_data
from . import formats
from .in_turn import InTurn
from .inference import LEAST_SEEDS
from .lines import choice_text, size
from .result import Result
from .tables import RunData
from .variants import purpose

FEW_ROUNDS = 10
APART = 0.01  # parameters further apart than that are not matched
SHORT = 12  # characters of a hash
_NAMED = 6  # as many layouts with missing cases, or machines, are named
_LONG = 300  # characters of an error


@dataclass(frozen=True)
class Doubt:
    """Why a comparison may be unfair. measures: those that it concerns, by `purpose`; empty for all.

    text: the whole sentence. short: what stands beside the findings that it concerns.
    """

    text: str
    short: str
    measures: frozenset[str] = frozenset()

    def concerns(self, measure: str) -> bool:
        """Whether it concerns a section; what is trained for recall or text concerns training and tuning as well."""
        trained = measure in ("training", "tuning") and self.measures & {"recall", "perplexity"}
        return not self.measures or measure in self.measures or bool(trained)


def doubts(run: RunData) -> list[Doubt]:
    """Every reason to doubt that a run compared its layouts fairly."""
    checks: tuple[Callable[[RunData], Iterator[Doubt]], ...] = (
        _foreign,
        _plugins,
        _rebuilt,
        _source,
        _other_starts,
        _taken_over,
        _throttled,
        _kinds,
        _software,
        _settings,
        _backends,
        _parameters,
        _data,
        _rates,
        _seeds,
        _rounds,
        _missing,
    )
    measured = {purpose(line) for line in run.lines}
    found = [doubt for check in checks for doubt in check(run)]
    # what concerns everything that was measured is said once
    return [replace(doubt, measures=frozenset()) if measured <= doubt.measures else doubt for doubt in found]


# --- What is known of a case ---


def device_of(line: Result) -> str:
    return str(line.parameters.get("device") or "device not known")


def threads_of(line: Result) -> str:
    count = line.parameters.get("threads")
    return f"{count} thread{'' if count == 1 else 's'}" if count else "threads not known"


def precision_of(line: Result) -> str:
    """`bfloat16 with TF32`; nothing where it was not recorded."""
    known = (line.parameters.get("training") or line.parameters).get("precision")
    return f"{known}{' with TF32' if line.parameters.get('tf32') else ''}" if known else ""


def corpus_of(line: Result) -> str:
    text = (line.metrics or {}).get("text")
    return str(text.get("sha256") or "") if isinstance(text, dict) else ""


def orders_by_seed(run: RunData) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """(what for, seed) -> layout -> what is known of the batches of its training and of their order."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for line in run.lines:
        data = (line.metrics or {}).get("data")
        if line.measure == "training" and isinstance(data, dict):
            settings = line.parameters.get("training") or {}
            kind = f"{purpose(line)}|{settings.get('curriculum') or settings.get('length')}"
            found.setdefault((kind, line.seed), {})[line.layout] = data
    return found


def for_what(run: RunData, kind: str) -> str:
    """` for recall` where models were trained for more than one thing."""
    purposes = {purpose(line) for line in run.lines if line.measure == "training"}
    return f" for {kind.split('|')[0]}" if len(purposes) > 1 else ""


def listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def choices_of(lines: list[Result]) -> set[str]:
    return {choice_text((line.metrics or {}).get("choice")) for line in lines if line.measure == "tuning"} - {""}


# --- The checks ---


def _foreign(run: RunData) -> Iterator[Doubt]:
    foreign = run.environment.get("foreign")
    if isinstance(foreign, dict):
        tool = str(foreign.get("tool") or "another tool")
        text = f"Measured by {tool}, not by mixerzoo, and imported: nothing of the list below was checked."
        yield Doubt(text, f"measured by {tool}")


def _plugins(run: RunData) -> Iterator[Doubt]:
    failed = run.environment.get("plugins_failed")
    if isinstance(failed, dict) and failed:
        said = "; ".join(f"{name}: {' '.join(str(error).split())[:_LONG]}" for name, error in failed.items())
        count = f"{len(failed)} plug-in{'s' * (len(failed) != 1)}"
        text = f"{count} could not be loaded, so nothing of what they bring took part. {said}"
        yield Doubt(text, f"{count} could not be loaded: {formats.listing(list(map(str, failed)))}")


def _rebuilt(run: RunData) -> Iterator[Doubt]:
    if rebuilt := run.environment.get("rebuilt"):
        when = f" ({_brief(rebuilt)})" if isinstance(rebuilt, str) else ""
        text = (
            f"The record of where this run was made was lost, and rebuilt from its results by mixerzoo repair{when}: "
        )
        yield Doubt(f"{text}versions and commit may be missing.", "where it was made had to be rebuilt")


def _source(run: RunData) -> Iterator[Doubt]:
    source = run.environment.get("source") or {}
    if run.environment.get("rebuilt"):
        return  # said already
    if not source.get("commit"):
        yield Doubt("The commit is not known: mixerzoo did not run from a git checkout.", "commit not known")
    elif source.get("dirty"):
        yield Doubt("The source had uncommitted changes: the commit alone may not give these numbers.", "dirty commit")


def _other_starts(run: RunData) -> Iterator[Doubt]:
    """Cases that were made by a later start of the run, somewhere else or by other code."""
    starts = [run.environment, *(run.environment.get("resumed") or [])]
    times = [str(start.get("started") or "") for start in starts]
    ticked = times == sorted(times)  # else the clock went backwards, and tells nothing
    for start in starts[1:]:
        differs = start.get("differs") or {}
        since = [line for line in run.lines if ticked and line.ended and line.ended >= str(start["started"])]
        known = ticked and any(line.ended for line in run.lines)
        if not differs or (known and not since):
            continue
        names = formats.listing([_difference(name, pair) for name, pair in differs.items()])
        whose = f"{len(since)} cases" if known else "An unknown number of cases"
        text = f"{whose} come from a later start ({start.get('started')}) that differed in {names}."
        short = f"some cases were run later with another {formats.listing(list(differs))}"
        yield Doubt(text, short, frozenset(purpose(line) for line in since))


def _difference(name: str, pair: Any) -> str:
    """`source (commit 0123456 to 89abcde)`, `threads (2 to 4)`."""
    ends: list[Any] = pair if isinstance(pair, list) and len(pair) == 2 else ["", ""]
    if not all(isinstance(end, dict) for end in ends):
        return f"{name} ({ends[0]} to {ends[1]})"
    keys = [key for key in dict.fromkeys([*ends[0], *ends[1]]) if ends[0].get(key) != ends[1].get(key)]
    return f"{name} ({'; '.join(f'{key} {_brief(ends[0].get(key))} to {_brief(ends[1].get(key))}' for key in keys)})"


def _brief(value: object) -> str:
    return formats.shorten(str(value), SHORT + 1)


def _taken_over(run: RunData) -> Iterator[Doubt]:
    """Cases that were taken over from a run of other code."""
    here = (run.environment.get("source") or {}).get("commit")
    for name, there in (run.environment.get("reused") or {}).items():
        source = there.get("source") or {}
        other = source.get("commit")
        if other == here and not source.get("dirty"):
            continue
        made = f"commit {_brief(other)}" if other else "an unknown commit"
        made += " with uncommitted changes" if source.get("dirty") else ""
        text = f"Some cases were taken over from the run {name}, made with {made}; this run was made with "
        yield Doubt(f"{text}{_brief(here) if here else 'an unknown one'}.", f"some cases are of {made}")


def _throttled(run: RunData) -> Iterator[Doubt]:
    for start in run.environment.get("finished") or []:
        if start.get("held_down"):
            reasons = formats.listing([str(reason).replace("_", " ") for reason in start["held_down"]])
            text = f"The clock of the GPU was held down ({reasons}) in what was run from {start.get('started')} to "
            text += f"{start.get('ended')}: its speeds may be too low."
            yield Doubt(text, "the clock of the GPU was held down", frozenset({"speed", *_in_turn(run)}))


def _kinds(run: RunData) -> Iterator[Doubt]:
    """What was timed on several kinds of machines."""
    if run.places:
        kinds = list(dict.fromkeys(place.kind for place in run.places.values()))
        text = f"Not all was timed on one kind of machine, but on {len(kinds)}: {'; '.join(kinds)}. Numbers are "
        text += "compared within a kind only."
        measures = {purpose(line) for line in run.lines if line.case in run.timed}
        yield Doubt(text, f"timed on {len(kinds)} kinds of machines, each compared by itself", frozenset(measures))


def _software(run: RunData) -> Iterator[Doubt]:
    """Machines of one run on which something else was installed."""
    machines = [(str(name), known) for name, known in (run.environment.get("machines") or {}).items()]
    flat = {name: _installed(known) for name, known in machines if isinstance(known, dict)}
    differing = []
    for key in dict.fromkeys(key for known in flat.values() for key in known):
        found: dict[str, list[str]] = {}
        for name, known in flat.items():
            found.setdefault(known.get(key, "none"), []).append(name)
        if len(found) > 1:
            said = "; ".join(f"{_brief(value)} on {_some(names)}" for value, names in found.items())
            differing.append((key, f"{key} ({said})"))
    if differing:
        text = f"The machines of this run did not have the same software: {formats.listing([s for _, s in differing])}."
        yield Doubt(text, f"machines differ in {formats.listing([key for key, _ in differing])}")


def _installed(known: dict[str, Any]) -> dict[str, str]:
    """Everything that is installed on a machine, with its version: name -> text."""
    packages, source = known.get("packages") or {}, known.get("source") or {}
    found = {key: known.get(key) for key in ("python", "os")} | packages
    found |= {"commit": source.get("commit"), "uncommitted changes": source.get("dirty")}
    return {str(name): str(value) for name, value in found.items() if value is not None}


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return formats.listing([*names[:_NAMED], f"{more} more"] if more > 1 else names)


def _settings(run: RunData) -> Iterator[Doubt]:
    """Layouts that were measured with other threads, on another device or in another precision than the others."""
    for name, of in (("threads", threads_of), ("device", device_of), ("precision", precision_of)):
        for measure, lines in _by_measure(run).items():
            found: dict[tuple[str, ...], list[str]] = {}
            for label in dict.fromkeys(line.layout for line in lines):
                values = tuple(sorted({of(line) for line in lines if line.layout == label}))
                found.setdefault(values, []).append(label)
            if len(found) > 1:
                said = "; ".join(f"{', '.join(values)}: {formats.listing(own)}" for values, own in found.items())
                text = f"Not all layouts were measured alike in {measure.replace('_', ' ')}. {said}."
                yield Doubt(text, f"{name} differ between layouts", frozenset({purpose(lines[0])}))


def _in_turn(run: RunData) -> set[str]:
    """The measures that time several things in one process, as several backends of an op."""
    return {section.measure for section in run.sections if isinstance(section, InTurn)}


def _by_measure(run: RunData) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for line in run.lines:
        found.setdefault(line.measure, []).append(line)
    return found


def _backends(run: RunData) -> Iterator[Doubt]:
    """Ops that several layouts share, and that ran as another implementation in some of them."""
    for measure, lines in _by_measure(run).items():
        if measure in _in_turn(run):
            continue  # what runs in turn is several implementations on purpose
        ran: dict[tuple[str, Any], dict[str, set[str]]] = {}
        for line in lines:
            for op, names in line.backends.items():
                ran.setdefault((op, size(line, "mode")), {}).setdefault(line.layout, set()).update(names)
        told: set[str] = set()
        for (op, _), layouts in ran.items():
            by_names: dict[str, list[str]] = {}
            for label, taken in layouts.items():
                by_names.setdefault(", ".join(sorted(taken)), []).append(label)
            if len(by_names) > 1 and op not in told:
                told.add(op)
                said = "; ".join(f"{which} in {formats.listing(own)}" for which, own in by_names.items())
                text = f"In {measure.replace('_', ' ')} the op {op} did not run alike in all layouts: {said}."
                yield Doubt(text, f"{op} ran as {' or '.join(by_names)}", frozenset({purpose(lines[0])}))


def _parameters(run: RunData) -> Iterator[Doubt]:
    known = [row for row in run["models"].to_dict("records") if not formats.missing(row.get("parameters"))]
    if len(known) < 2:
        return
    least, most = (pick(known, key=lambda row: row["parameters"]) for pick in (min, max))
    apart = most["parameters"] / least["parameters"] - 1
    if apart > APART:
        matched = listed(text_of(row.get("match")) for row in known)
        how = f"matched by {matched}" if matched else "the widths were not matched"
        text = f"Parameters are up to {100 * apart:.3g} % apart ({how}): "
        text += f"{least['layout']} has {formats.whole(least['parameters'])}, "
        text += f"{most['layout']} {formats.whole(most['parameters'])}."
        measures = {purpose(line) for line in run.lines if "parameters" in (line.metrics or {})} | {"speed"}
        yield Doubt(text, f"parameters up to {100 * apart:.3g} % apart", frozenset(measures))


def _data(run: RunData) -> Iterator[Doubt]:
    """Trainings of one seed that read other data, or the same in another order."""
    corpora: dict[str, dict[str, list[str]]] = {}
    for line in run.lines:
        if text := corpus_of(line):
            labels = corpora.setdefault(purpose(line), {}).setdefault(text, [])
            labels.extend([] if line.layout in labels else [line.layout])
    for measure, texts in corpora.items():
        if len(texts) > 1:
            said = "; ".join(f"{text[:SHORT]}: {formats.listing(own)}" for text, own in texts.items())
            yield Doubt(f"The text for {measure} was not the same. {said}.", "other text", frozenset({measure}))
    for (kind, seed), orders in orders_by_seed(run).items():
        alike: list[list[str]] = []
        for label, data in orders.items():
            own = next((group for group in alike if same_data(orders[group[0]], data) is not False), None)
            alike.append([label]) if own is None else own.append(label)
        if len(alike) > 1:
            usual = max(alike, key=len)
            others = [label for group in alike if group is not usual for label in group]
            text = (
                f"With seed {seed}{for_what(run, kind)}, {formats.listing(others)} read other batches, or in another "
            )
            text += f"order, than {formats.listing(usual)}."
            yield Doubt(text, f"other batches with seed {seed}", frozenset({kind.split("|")[0]}))


def _rates(run: RunData) -> Iterator[Doubt]:
    for measure in dict.fromkeys(purpose(line) for line in run.lines if line.measure == "tuning"):
        lines = [line for line in run.lines if purpose(line) == measure]
        tried = {label: len(choices_of([li for li in lines if li.layout == label])) for label in run.layouts}
        tried = {label: count for label, count in tried.items() if any(line.layout == label for line in lines)}
        if len(set(tried.values())) > 1:
            said = "; ".join(f"{label} {count}" for label, count in tried.items())
            text = f"Not every layout was tuned over as many choices for {measure}: {said}."
            yield Doubt(text, "unequal numbers of choices in tuning", frozenset({measure}))


def _seeds(run: RunData) -> Iterator[Doubt]:
    """Trained models with fewer seeds than tell layouts apart."""
    lines = [line for line in run.lines if line.measure == "training"]
    for measure in dict.fromkeys(purpose(line) for line in lines):
        seeds: dict[str, set[int]] = {}
        for line in lines:
            if purpose(line) == measure:
                seeds.setdefault(line.layout, set()).add(line.seed)
        few = {label: len(own) for label, own in seeds.items() if len(own) < LEAST_SEEDS}
        if few:
            least = min(few.values())
            count = "one seed" if least == 1 else f"{least} seeds"
            whose = "every layout" if len(few) == len(seeds) else formats.listing(list(few))
            text = f"{measure.capitalize()} of {whose} has {count}: numbers hold for these trained models, not for "
            yield Doubt(f"{text}the layout.", count, frozenset({measure}))


def _rounds(run: RunData) -> Iterator[Doubt]:
    for measure, lines in _by_measure(run).items():
        counts = [count for line in lines for count in _counted(line)]
        few = [count for count in counts if count < FEW_ROUNDS]
        if few:
            whose = "All" if len(few) == len(counts) else f"{len(few)} of {len(counts)}"
            text = f"{whose} timings of {measure.replace('_', ' ')} are of fewer than {FEW_ROUNDS} rounds, the "
            fewest = "one round" if min(few) == 1 else f"{min(few)} rounds"
            yield Doubt(f"{text}fewest of {min(few)}.", f"as few as {fewest}", frozenset({measure}))


def _counted(line: Result) -> Iterator[int]:
    metrics = line.metrics or {}
    found = [metrics, *(row for row in metrics.get("rows") or [] if isinstance(row, dict))]
    return (own["rounds"] for own in found if isinstance(own.get("rounds"), int))


def _missing(run: RunData) -> Iterator[Doubt]:
    rows = run["missing"].to_dict("records")
    for measure in dict.fromkeys(row["measure"] for row in rows):
        own = [row for row in rows if row["measure"] == measure]
        count = sum(row["expected"] - row["found"] for row in own)
        labels = list(dict.fromkeys(row["layout"] for row in own))
        more = len(labels) - _NAMED
        labels = [*labels[:_NAMED], f"{more} more"] if more > 1 else labels
        text = (
            f"{count} planned cases of {str(measure).replace('_', ' ')} have no result yet: {formats.listing(labels)}."
        )
        yield Doubt(text, f"{count} cases missing", frozenset({str(measure)}))
