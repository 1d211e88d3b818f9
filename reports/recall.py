"""What taught models recall: one estimate for each layout and cell, and the cells that the verdict is about.

A cell is a length, a load, a number of passes and a kind of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd

from . import formats
from .claims import Estimate, estimate
from .inference import Tally
from .statistics import rows_of
from .tables import RunData
from .taught import NOT_TAUGHT, Taught, load_text, of_needles, teaching

_CELL = ["length", "load", "passes", "memory"]


@dataclass(frozen=True)
class Cell:
    """Where recall was asked for. load: 0 if the task has none."""

    length: int
    load: int
    passes: int
    memory: str

    def text(self, task: str | None) -> str:
        """`256 needles at 8,192 tokens`, with passes and memory where they are not the plain ones."""
        parts = [f"{load_text(self.load, task)} at " if self.load else "", f"{formats.whole(self.length)} tokens"]
        parts += [f", {self.passes} passes"] if self.passes > 1 else []
        parts += [f", {self.memory} memory"] if self.memory != "fresh" else []
        return "".join(parts)


@dataclass(frozen=True, eq=False)
class Recall:
    """The recall of one experiment. cells: an estimate a row, of taught layouts only.

    taught: layout -> what became of its trainings. trained_lengths, trained_loads: what the models were trained on.
    failed: (layout, length) -> why some or all of its taught models gave no answers there.
    """

    variant: str
    task: str | None
    taught: dict[str, Taught]
    trained_lengths: list[int]
    trained_loads: list[int]
    cells: pd.DataFrame
    failed: dict[tuple[str, int], str]
    answers: pd.DataFrame

    @property
    def noun(self) -> str:
        return "Needles recalled" if of_needles(self.task) else "Answers right"

    @property
    def untaught(self) -> list[str]:
        return [name for name, status in self.taught.items() if status.untaught]

    @property
    def layouts(self) -> list[str]:
        """The taught layouts that were asked."""
        asked = {*self.cells["layout"], *(layout for layout, _ in self.failed)}
        return [name for name in self.taught if name in asked]

    @property
    def headline(self) -> Cell:
        """The greatest length that the most taught layouts were asked for (a failure counts), and there the greatest
        load that the most answered; the fewest passes, with fresh memory. It is not chosen by who does well.
        """
        asked = [*zip(self.cells["layout"], self.cells["length"]), *self.failed]
        length = _widest(pd.DataFrame(asked, columns=["layout", "value"]))
        here = self.cells[self.cells["length"] == length]
        here = here if len(here) else self.cells
        load = _widest(here[["layout", "load"]].set_axis(["layout", "value"], axis=1))
        memory = "fresh" if (here["memory"] == "fresh").any() else str(here["memory"].iloc[0])
        return Cell(length, load, int(here["passes"].min()), memory)

    @property
    def claimed(self) -> list[tuple[str, Cell]]:
        """The cells of the verdict, each with what it shows: the headline, then length alone and load alone."""
        top = self.headline
        length, load = self._trained("length", self.trained_lengths), self._trained("load", self.trained_loads)
        cells = [("Recall", top)]
        cells += [("Length alone", replace(top, load=load))] if load and load != top.load else []
        cells += [("Load alone", replace(top, length=length))] if length and length != top.length else []
        return [(name, cell) for name, cell in cells if len(self.at(cell))]

    def at(self, cell: Cell) -> pd.DataFrame:
        """The estimates of one cell, best first."""
        return self.where(**vars(cell)).sort_values("accuracy", ascending=False, kind="stable")

    def where(self, **values: object) -> pd.DataFrame:
        """The estimates with these values in the named columns."""
        kept = self.cells
        for name, value in values.items():
            kept = kept[kept[name] == value]
        return kept

    def answers_at(self, cell: Cell) -> dict[str, dict[int, Tally]]:
        """Layout -> seed -> its answers."""
        kept = self.answers
        for name, value in vars(cell).items():
            kept = kept[kept[name] == value]
        return {str(layout): dict(zip(own["seed"], own["hits"])) for layout, own in kept.groupby("layout", sort=False)}

    def missing_text(self, layout: str, length: int | None = None) -> str:
        """What a table says of a layout where it has no number: why its models failed, or `not taught`."""
        status = self.taught.get(layout)
        if status is not None and status.untaught:
            return NOT_TAUGHT
        return self.failed.get((layout, length), formats.NOTHING) if length is not None else formats.NOTHING

    def _trained(self, column: str, trained: list[int]) -> int:
        """The greatest evaluated value that was trained too; 0 if there is none."""
        values = [int(v) for v in self.cells[column].unique() if trained and v <= max(trained)]
        return max(values, default=0)


@lru_cache(maxsize=4)
def recalls(run: RunData) -> tuple[Recall, ...]:
    """One `Recall` for each experiment of the run that has answers or trainings for recall."""
    training = run["training"][run["training"]["measure"] == "recall"]
    variants = dict.fromkeys([*training["variant"], *run["answers"]["variant"]])
    return tuple(_recall(run, str(variant), training[training["variant"] == variant]) for variant in variants)


def asked(run: RunData) -> Iterator[Recall]:
    """Those of `recalls` that have answers."""
    return (recall for recall in recalls(run) if len(recall.cells))


def _recall(run: RunData, variant: str, training: pd.DataFrame) -> Recall:
    answers = run["answers"][run["answers"]["variant"] == variant]
    answers = answers.assign(
        load=answers["load"].astype(float).fillna(0).astype(int), memory=answers["memory"].fillna("fresh")
    )
    states = {(r.layout, r.length): r.state_bytes for r in rows_of(run["states"])}
    estimates = [
        {
            **dict(zip(["layout", *_CELL], key)),
            **vars(estimate(dict(zip(group["seed"], group["hits"])))),
            "chance": float(group["chance"].mean()),
            "state_bytes": states.get((key[0], key[1])),
            "backends": " | ".join(dict.fromkeys(group["backends"])),
        }
        for key, group in answers.groupby(["layout", *_CELL], sort=False)
    ]
    columns = ["layout", *_CELL, *Estimate.__dataclass_fields__, "chance", "state_bytes", "backends"]
    return Recall(
        variant=variant,
        task=next((str(task) for task in training["task"].dropna()), None),
        taught={t.layout: t for t in teaching(run) if t.variant == variant},
        trained_lengths=sorted({n for lengths in training["lengths"] for n in lengths}),
        trained_loads=sorted({n for loads in training["loads"] for n in loads}),
        cells=pd.DataFrame(estimates, columns=columns),
        failed=_failed(run["failed_lengths"][run["failed_lengths"]["variant"] == variant], answers),
        answers=answers,
    )


def _failed(failures: pd.DataFrame, answers: pd.DataFrame) -> dict[tuple[str, int], str]:
    """`out of memory`, or `1 of 3 seeds: out of memory` where other seeds have answers."""
    found: dict[tuple[str, int], str] = {}
    for (layout, _), group in failures.groupby(["layout", "length"], sort=False):
        length = int(group["length"].iloc[0])
        causes = formats.listing(sorted({status.replace("_", " ") for status in group["status"]}))
        there = answers[(answers["layout"] == layout) & (answers["length"] == length)]["seed"].nunique()
        some = f"{len(group)} of {len(group) + there} seeds: " if there else ""
        found[str(layout), length] = f"{some}{causes}"
    return found


def _widest(pairs: pd.DataFrame) -> int:
    """The greatest `value` that the most layouts have."""
    counts = pairs.groupby("value")["layout"].nunique()
    return int(counts[counts == counts.max()].index.max())
