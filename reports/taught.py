"""Who was taught: which seeds passed the bar of their training, said before anything else is claimed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from . import formats
from .finding import of
from .statistics import rows_of
from .tables import RunData
from .variants import purpose

NOT_TAUGHT = "not taught"


@dataclass(frozen=True)
class Taught:
    """What became of the trainings of a layout.

    seeds: trainings that ended, in whatever way. passed: those that reached the bar; None if the suite sets no bar.
    bar: `95 % at 256 tokens, 8 needles`. tokens: the most that one seed was given. failures: why trainings broke off.
    """

    layout: str
    variant: str
    seeds: int
    passed: int | None
    bar: str
    tokens: float | None
    failures: tuple[str, ...]

    @property
    def untaught(self) -> bool:
        """Whether no seed was taught, so that nothing may be said of what the layout recalls."""
        return self.passed == 0 or len(self.failures) == self.seeds

    @property
    def in_part(self) -> bool:
        """Whether some seeds were taught and some were not."""
        return not self.untaught and self.passed is not None and self.passed < self.seeds

    @property
    def short(self) -> str:
        """`2 of 3 seeds`; `no bar`."""
        return f"{self.passed} of {self.seeds} seeds" if self.passed is not None else "no bar"

    @property
    def sentence(self) -> str:
        """Said of a layout of which not every seed was taught."""
        within = f", within {formats.si(self.tokens)} tokens" if self.tokens else ""
        reached = f"{self.passed or 0} of {self.seeds} seeds reached {self.bar}{within}"
        broken = f" ({len(self.failures)} broke off: {formats.listing(sorted(set(self.failures)))})"
        reached += broken if self.failures else ""
        return f"{self.layout} was not taught: {reached}" if self.untaught else f"{self.layout}: {reached}"


@lru_cache(maxsize=8)
def teaching(run: RunData, measure: str = "recall") -> tuple[Taught, ...]:
    """One `Taught` for each layout and variant of which a training has ended, in the order of the layouts."""
    own = run["training"][run["training"]["measure"] == measure]
    groups = own.groupby(["variant", "layout"], sort=False)
    return tuple(_taught(str(layout), str(variant), group) for (variant, layout), group in groups)


def bar_text(accuracy: float, length: float | None, load: float | None, task: str | None) -> str:
    """`95 % at 256 tokens, 8 needles`."""
    share = f"{100 * accuracy:.4g} %"
    at = [f"{formats.whole(length)} tokens"] if length and not formats.missing(length) else []
    at += [load_text(load, task)] if load and not formats.missing(load) else []
    return f"{share} at {', '.join(at)}" if at else share


def load_text(load: float, task: str | None) -> str:
    """`8 needles`; of other tasks `load 8`."""
    if not of_needles(task):
        return f"load {formats.whole(load)}"
    return f"{formats.whole(load)} needle{'s' if load != 1 else ''}"


def of_needles(task: str | None) -> bool:
    """Whether the load of a task is a number of needles."""
    return task is not None and task.startswith("needle")


def statements(run: RunData) -> list[str]:
    """The first sentences of the verdict: the layouts that were not taught, then those taught with some seeds only."""
    every = teaching(run)
    untaught, in_part = [t for t in every if t.untaught], [t for t in every if t.in_part]
    untuned = [f"{name} was not taught: all of its tuning failed ({why})." for name, why in _untuned(run)]
    return [*untuned, *(f"{t.sentence}{of(t.variant)}." for t in [*untaught, *in_part])]


def _untuned(run: RunData) -> Iterator[tuple[str, str]]:
    """Layouts that were never trained for recall, since every training that would have tuned them failed, and why."""
    trained = set(run["training"][run["training"]["measure"] == "recall"]["layout"])
    tuning = [line for line in run.lines if line.measure == "tuning" and purpose(line) == "recall"]
    for layout in run.layouts:
        states = {line.status.replace("_", " ") for line in tuning if line.layout == layout}
        if states and "ok" not in states and layout not in trained:
            yield layout, formats.listing(sorted(states))


def bars(run: RunData, measure: str = "recall") -> list[str]:
    """The bars that trainings were held to, each once."""
    return list(dict.fromkeys(t.bar for t in teaching(run, measure) if t.bar))


def tokens_to_solve(run: RunData) -> Iterator[tuple[Taught, pd.DataFrame]]:
    """Each layout that was held to a bar, with its trainings: `tokens_to_solve`, or `tokens` that were not enough."""
    for status in teaching(run):
        if status.bar:
            own = run["training"][run["training"]["measure"] == "recall"]
            yield status, own[(own["layout"] == status.layout) & (own["variant"] == status.variant)]


def _taught(layout: str, variant: str, group: pd.DataFrame) -> Taught:
    # a training that broke off tells the bar only as the suite sets it
    held = group[group["bar"].notna()].sort_values("bar_length", na_position="last", kind="stable")
    first = next(rows_of(held), None)
    return Taught(
        layout=layout,
        variant=variant,
        seeds=len(group),
        passed=None if first is None else int((held["passed"] == True).sum()),  # noqa: E712, None did not pass
        bar="" if first is None else bar_text(first.bar, first.bar_length, first.bar_load, first.task),
        tokens=None if group["tokens"].isna().all() else float(group["tokens"].max()),
        failures=tuple(status.replace("_", " ") for status in group["status"] if status != "ok"),
    )
