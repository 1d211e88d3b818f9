"""How recall changed between two runs: paired differences on the same questions."""

from __future__ import annotations

from collections.abc import Iterator

from . import change, formats
from .change import Change, Refused, backends_note, matched
from .inference import Answers, compare_recall
from .recall import Cell, Recall, asked
from .table import in_brackets
from .tables import RunData


def recall_changes(before: RunData, after: RunData) -> Iterator[Change | Refused]:
    """Every cell that taught models of both runs were asked, of experiments with equal names."""
    theirs = {recall.variant: recall for recall in asked(after)}
    for old in asked(before):
        if old.variant in theirs:
            yield from _untaught(old, theirs[old.variant])
            yield from _recall_cells(old, theirs[old.variant])


def _untaught(old: Recall, new: Recall) -> Iterator[Refused]:
    """Layouts that recalled something in one run and were not taught in the other."""
    for layout in [name for name in old.taught if name in new.taught]:
        before, after = old.taught[layout], new.taught[layout]
        if before.untaught != after.untaught:
            yield Refused("recall", layout, f"taught in one run only: {before.short} before, {after.short} after")


def _recall_cells(old: Recall, new: Recall) -> Iterator[Change | Refused]:
    for key, own, other in matched(old.cells, new.cells, ["layout", "length", "load", "passes", "memory"]):
        layout, cell = str(key[0]), Cell(*key[1:])
        hits = [Answers(recall.answers_at(cell)[layout]) for recall in (old, new)]
        what = f"{cell.text(old.task)}{in_brackets(old.variant)}"
        try:
            found = compare_recall(hits[1], hits[0])
        except ValueError:
            yield Refused("recall", layout, f"{what}: the questions are not the same")
            continue
        if not found.seeds:
            yield Refused("recall", layout, f"{what}: no seed was taught in both")
            continue
        same_models = "the sign holds for these models only" if found.separable else ""
        yield Change(
            measure="recall",
            layout=layout,
            what=what,
            before=formats.percent(own["accuracy"].iloc[0]),
            after=formats.percent(other["accuracy"].iloc[0]),
            note="; ".join(note for note in (same_models, backends_note(own, other)) if note),
            **change.of_difference(found),
        )
