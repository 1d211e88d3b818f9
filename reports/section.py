"""A section: what reports say of one measure. Adding a measure to reports is adding a file to `reports/measures/`."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from . import measures
from .lines import Lines

if TYPE_CHECKING:
    from .change import Change, Refused
    from .charts import Figure
    from .finding import Finding
    from .table import Table
    from .tables import RunData

GROUP = "mixerzoo.sections"


class PlugInError(ValueError):
    """A section of another package that cannot be loaded."""


class Section:
    """What reports say of one measure.

    `reports/measures/<measure>.py` holds a subclass, and an instance of it named `SECTION`; a package announces its own
    as an entry point of the group `mixerzoo.sections`. A measure without one gets a `PlainSection`.

    title: its heading. order: its place on the page, lower first. alike: settings of the measure that do not tell two
    experiments apart, since they are shown as sizes or cannot change the result. holds_for: which runs may be compared:
    of any machines, of equal devices, or of one machine with equal threads.
    """

    measure: str
    title: str
    order: int = 80
    alike: frozenset[str] = frozenset()
    holds_for: Literal["any machine", "one device", "one machine"] = "any machine"

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        """Its tidy tables by name, from all lines of a run, failed ones too; each has its columns if it is empty."""
        return {}

    def findings(self, run: RunData) -> Iterator[Finding]:
        """The questions that it answers, most important first; what was not measured is left out."""
        yield from ()

    def figures(self, run: RunData) -> Iterator[Figure]:
        """Its charts, of what there is data for."""
        yield from ()

    def tables(self, run: RunData) -> Iterator[Table]:
        """Its tables on the page."""
        yield from ()

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        """Its rows of `summary.csv`: a pooled number each, see `summary.SUMMARY`."""
        yield from ()

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        """How its numbers changed between two runs in which what is comparable has equal layouts and variants."""
        yield from ()


@lru_cache
def known_sections() -> dict[str, Section]:
    """The sections of this package and those that others announce, by measure.

    Raises `PlugInError` for one of another package that cannot be loaded.
    """
    found: list[Section] = [
        import_module(f"{measures.__name__}.{module.name}").SECTION
        for module in pkgutil.iter_modules(measures.__path__)
    ]
    for entry in entry_points(group=GROUP):
        try:
            found.append(entry.load())
        except Exception as error:  # somebody else's code: whatever it raises
            raise PlugInError(f"the section {entry.name!r} ({entry.value}) could not be loaded: {error}") from error
    return {section.measure: section for section in found}


def sections(asked: Iterable[str]) -> list[Section]:
    """All sections in the order of the page, and a plain one for each measure of `asked` that has none."""
    from .plain import PlainSection

    known = known_sections()
    plain = [PlainSection(measure) for measure in dict.fromkeys(asked) if measure not in known]
    return sorted([*known.values(), *plain], key=lambda section: (section.order, section.measure))
