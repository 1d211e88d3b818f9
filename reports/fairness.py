"""Whether the layouts of a run were compared fairly: what was the same for all of them, and where it was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..benchmarks.runs import same_data
from . import formats
from .doubts import (
    SHORT,
    Doubt,
    choices_of,
    corpus_of,
    device_of,
    doubts,
    for_what,
    listed,
    orders_by_seed,
    precision_of,
    text_of,
    threads_of,
)
from .lines import choice_text
from .result import Result
from .table import Table
from .tables import RunData

_MANY, _FIRST = 12, 3  # of more seeds than that, the first are told one by one
Column = Callable[[str, list[Result]], str]  # what stands in it for a layout and its results


@dataclass(frozen=True)
class Fairness:
    """The panel of a report. facts: of the whole run, a name and a text each; layouts: what differs by layout."""

    facts: list[tuple[str, str]]
    layouts: Table | None
    doubts: list[Doubt]

    def beside(self, measure: str) -> list[str]:
        """What stands beside the findings of a measure; what concerns all of them stands above them once."""
        return [doubt.short for doubt in self.doubts if doubt.measures and doubt.concerns(measure)]

    @property
    def of_all(self) -> list[str]:
        return [doubt.short for doubt in self.doubts if not doubt.measures]


def fairness(run: RunData) -> Fairness:
    """Everything about a run that a sceptical reader would ask first."""
    return Fairness(_facts(run), _table(run), doubts(run))


# --- What was the same for all ---


def _facts(run: RunData) -> list[tuple[str, str]]:
    environment = run.environment
    source = environment.get("source") or {}
    commit = source.get("commit")
    state = ", with uncommitted changes" if source.get("dirty") else ", nothing uncommitted" if commit else ""
    machine = environment.get("machine") or {}
    cores = f", {machine['usable_cores']} cores" if machine.get("usable_cores") else ""
    memory = f", {formats.bytes_(machine['memory_bytes'])} of memory" if machine.get("memory_bytes") else ""
    gpu = (environment.get("gpu") or {}).get("name")
    packages = environment.get("packages") or {}
    versions = [f"{name} {known}" for name, known in packages.items() if known]
    facts = [
        ("Machine", f"{machine.get('cpu') or 'not known'}{cores}{memory}{f', {gpu}' if gpu else ''}"),
        ("Device and threads", _spread(run, lambda line: f"{device_of(line)}, {threads_of(line)}")),
        ("Precision", _spread(run, precision_of)),
        ("Software", ", ".join([*([f"Python {environment['python']}"] if "python" in environment else []), *versions])),
        ("Commit", f"{commit}{state}" if commit else "not known"),
        ("Command", str(environment.get("command") or "not known")),
        ("Seeds", _spread(run, lambda line: line.seed, _seeds)),
        ("Data and their order", " ".join(_orders(run))),
    ]
    return [(name, text) for name, text in facts if text]


def _seeds(values: list[int]) -> str:
    return ", ".join(map(str, values)) if len(values) <= _MANY else formats.numbers(values)


def _spread(run: RunData, of: Callable[[Result], Any], joined_as: Callable[[list[Any]], str] | None = None) -> str:
    """`A (speed); B (recall, memory)`: the values of the measures, in brackets whose they are where they differ.

    joined_as: makes one text of all values of a measure.
    """
    found: dict[str, dict[Any, None]] = {}
    for line in run.lines:
        if line.measure != "tuning" and (value := of(line)) not in ("", None):
            found.setdefault(line.measure, {})[value] = None
    joined: dict[str, list[str]] = {}
    for measure, known in found.items():
        values = list(known)
        for value in [joined_as(values)] if joined_as else values:
            joined.setdefault(value, []).append(measure.replace("_", " "))
    if len(joined) == 1:
        return next(iter(joined))
    return "; ".join(f"{value} ({', '.join(measures)})" for value, measures in joined.items())


def _orders(run: RunData) -> Iterator[str]:
    """What is known of the data that models were trained on: the corpus, and the batches in their order."""
    corpora = {text: None for line in run.lines if (text := corpus_of(line))}
    if corpora:
        yield f"SHA-256 of the text: {', '.join(text[:SHORT] for text in corpora)}."
    every = orders_by_seed(run)
    shown = dict(list(every.items())[: _MANY if len(every) <= _MANY else _FIRST])
    for (kind, seed), orders in shown.items():
        first = _most(orders)
        if all(same_data(first, data) for data in orders.values()):
            which = "The one training" if len(orders) == 1 else f"All {len(orders)} trainings"
            same = "read" if len(orders) == 1 else "read the same"
            order = "" if len(orders) == 1 else " in the same order"
            stopped = ", as far as each went" if len({data["batches"] for data in orders.values()}) > 1 else ""
            batches, digest = formats.whole(first["batches"]), str(first["sha256"])[:SHORT]
            yield f"{which} of seed {seed}{for_what(run, kind)} {same} {batches} batches{order}{stopped} ({digest})."
    if more := {key: orders for key, orders in every.items() if key not in shown}:
        alike = sum(all(same_data(_most(own), data) for data in own.values()) for own in more.values())
        yield f"The trainings of {alike} of {len(more)} more seeds did so, each seed in an order of its own."
    trained = [line for line in run.lines if line.measure == "training" and line.status == "ok"]
    if trained and not any((line.metrics or {}).get("data") for line in trained):
        yield "The order of the batches was not recorded; it follows from the seed alone."


def _most(orders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the training read that went furthest."""
    return max(orders.values(), key=lambda data: data["batches"])


# --- What differs by layout ---


def _table(run: RunData) -> Table | None:
    """The sizes of every layout, how it was trained and what ran; columns without a value are left out."""
    by_layout: dict[str, list[Result]] = {label: [] for label in run.layouts}
    for line in run.lines:
        by_layout[line.layout].append(line)
    models = {row["layout"]: row for row in run["models"].to_dict("records")}
    suite = run.suite.get("layouts") or {}

    def of_model(name: str, written: Callable[[Any], str]) -> Column:
        return lambda label, _: written(models.get(label, {}).get(name))

    words: dict[str, Column] = {
        "Layout line": lambda label, _: text_of(suite.get(label) or models.get(label, {}).get("layout_line")),
        "Backends that ran": lambda _, own: _ran(own),
        "Trained with": lambda _, own: listed(_chosen(line) for line in own if line.measure == "training"),
        "Matched": of_model("match", text_of),
    }
    numbers: dict[str, Column] = {
        "Choices tried": lambda _, own: str(len(choices_of(own)) or ""),
        "Seeds trained": lambda _, own: _seeds(list(dict.fromkeys(li.seed for li in own if li.measure == "training"))),
        "Parameters": of_model("parameters", formats.whole),
        "FLOPs per token": of_model("flops_per_token", formats.si),
        "d_ff": of_model("d_ff", formats.whole),
    }
    cells = {name: [make(*own) for own in by_layout.items()] for name, make in (words | numbers).items()}
    kept = {name: texts for name, texts in cells.items() if any(text not in ("", formats.NOTHING) for text in texts)}
    if not kept:
        return None
    rows = [[label, *(texts[i] or formats.NOTHING for texts in kept.values())] for i, label in enumerate(by_layout)]
    note = "All layouts stand in the same backbone. FLOPs of a forward pass. Matched: what the feed-forward width was "
    note += "adjusted to keep equal, within 1 %."
    text_columns = 1 + sum(name in kept for name in words)
    return Table("layouts", "What was compared", ["Layout", *kept], rows, note, text_columns)


def _ran(lines: list[Result]) -> str:
    """`attention: sdpa; fwpkm: torch`."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for op, names in sorted(line.backends.items()):
            found.setdefault(op, {}).update(dict.fromkeys(names))
    return "; ".join(f"{op}: {', '.join(names)}" for op, names in found.items())


def _chosen(line: Result) -> str:
    """What tuning chose, or the learning rate of the suite."""
    rate = (line.parameters.get("training") or {}).get("learning_rate")
    fixed = f"learning_rate = {rate:g}, not tuned" if isinstance(rate, float) else ""
    return choice_text((line.metrics or {}).get("chosen")) or fixed
