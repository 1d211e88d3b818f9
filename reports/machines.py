"""The machines of a run: which kind every case ran on, so that what is timed is compared within one kind alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import formats
from .result import Result

if TYPE_CHECKING:
    from .section import Section
    from .table import Table

NOT_KNOWN = "a machine that is not known"
ELSEWHERE = "timed on another kind of machine"
_NAMED = 6  # as many layouts are named one by one


@dataclass(frozen=True)
class Place:
    """Where the numbers of a variant were taken. variant: its name without the machine. kind: of machine."""

    variant: str
    kind: str


def kind_of(line: Result, environment: Mapping[str, Any]) -> str:
    """The kind of machine that a case ran on: its own, or where it says nothing, that of the run's environment."""
    own = machine_of(line).get("kind")
    return str(own) if own else kind_in(environment)


def machine_of(line: Result) -> Mapping[str, str]:
    """Name and kind of the machine as the line has them; empty where they were not recorded."""
    return line.machine or {}


def kind_in(environment: Mapping[str, Any]) -> str:
    """The kind of the one machine that an environment describes, as lines name it: `AMD EPYC 7B13, 2 cores`."""
    machine, gpu = environment.get("machine") or {}, environment.get("gpu") or {}
    if not machine:
        return NOT_KNOWN
    cores = machine.get("usable_cores")
    words = [gpu.get("name"), machine.get("cpu") or "unknown CPU", f"{cores} core{'s' * (cores != 1)}"]
    return ", ".join(str(word) for word in words if word)


def is_timed(line: Result, section: Section) -> bool:
    """Whether the numbers of a case depend on its machine.

    A line that says whether its case ran alone (`exclusive`) decides, else its section. A measure without a section is
    taken to depend on it.
    """
    return section.holds_for != "any machine" if line.exclusive is None else line.exclusive


def timed_kinds(lines: Iterable[Result], environment: Mapping[str, Any], sections: Iterable[Section]) -> dict[str, str]:
    """Case -> the kind of machine that it was timed on; nothing for those whose numbers do not depend on it, nor for
    those without numbers of which no machine is known."""
    of = {section.measure: section for section in sections}
    timed = (line for line in lines if is_timed(line, of[line.measure]))
    return {line.case: kind_of(line, environment) for line in timed if line.machine or line.status == "ok"}


def told_apart(
    variants: Mapping[str, str], kinds: Mapping[str, str], cases: Iterable[str]
) -> tuple[dict[str, str], dict[str, Place]]:
    """The variant of each of `cases`, with its kind of machine if `kinds` has one; and the place of each such variant.

    Everything that is pooled, ranked, drawn or paired is so within a variant, hence within a kind of machine.
    """
    named: dict[str, str] = {}
    places: dict[str, Place] = {}
    for case in cases:
        plain, kind = variants[case], kinds.get(case)
        named[case] = plain if kind is None else ", ".join([*([plain] if plain else []), f"on {kind}"])
        if kind is not None:
            places[named[case]] = Place(plain, kind)
    return named, places


def comparable(groups: list[tuple[Any, pd.DataFrame]], places: Mapping[str, Place]) -> list[tuple[Any, pd.DataFrame]]:
    """Groups by variant and what follows it, without the kinds of machines on which fewer than two layouts were timed.

    Those stay where no kind has more.
    """

    def same(key: Any) -> tuple[Any, ...]:
        place = places.get(key[0])
        return (place.variant if place else key[0], *key[1:])

    most: dict[tuple[Any, ...], int] = {}
    for key, rows in groups:
        most[same(key)] = max(most.get(same(key), 0), rows["layout"].nunique())
    return [
        (key, rows)
        for key, rows in groups
        if key[0] not in places or rows["layout"].nunique() > 1 or most[same(key)] == 1
    ]


def elsewhere(frame: pd.DataFrame, variant: str, places: Mapping[str, Place], known: Iterable[str]) -> list[str]:
    """The layouts of `frame` that were timed on other kinds of machines than `variant` alone.

    known: those with a number on this kind.
    """
    here = places.get(variant)
    if here is None:
        return []
    others = [name for name, place in places.items() if place.variant == here.variant and name != variant]
    layouts = dict.fromkeys(frame.loc[frame["variant"].isin(others), "layout"])
    return [str(layout) for layout in layouts if layout not in set(known)]


def not_compared(layouts: list[str]) -> str:
    """A sentence that names what `elsewhere` found; nothing for nobody."""
    if not layouts:
        return ""
    more = len(layouts) - _NAMED
    names = [*layouts[:_NAMED], f"{more} more"] if more > 1 else layouts
    return f" {ELSEWHERE.capitalize()}, so not compared: {formats.listing(names)}."


def with_machine(table: Table, variant: str, places: Mapping[str, Place]) -> Table:
    """`table`, whose rows are all of `variant`, with a column for its kind of machine, where a run has several."""
    return machine_column(table, [variant] * len(table.rows), places)


def machine_column(table: Table, variants: Iterable[str], places: Mapping[str, Place]) -> Table:
    """`table` with a column for the kind of machine of each row, where a run has several. variants: of the rows."""
    kinds = [places[variant].kind if variant in places else "" for variant in variants]
    if not any(kinds):
        return table
    rows = [[row[0], kind or formats.NOTHING, *row[1:]] for kind, row in zip(kinds, table.rows)]
    columns = [table.columns[0], "Machine", *table.columns[1:]]
    return replace(table, columns=columns, rows=rows, text_columns=table.text_columns + 1)
