"""The scoreboard: what every layout scored on every question of the verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from . import formats
from .finding import Finding, Score
from .tables import RunData


@dataclass(frozen=True)
class Row:
    """A layout. scores: one for each question, None where it was not part of it."""

    layout: str
    families: list[str]
    parameters: float | None
    scores: list[Score | None]


@dataclass(frozen=True)
class Scoreboard:
    """questions: its columns, the findings that score layouts. rows: the layouts that any of them scores."""

    questions: list[Finding]
    rows: list[Row]

    def csv(self) -> str:
        """A line for each score, with the numbers unrounded."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["layout", "family", "parameters", "question", "score", "value", "low", "high", "best"])
        for row in self.rows:
            for question, score in zip(self.questions, row.scores):
                if score is not None:
                    known = [row.layout, " + ".join(row.families), row.parameters, question.topic]
                    writer.writerow([*known, score.text, score.value, score.low, score.high, score.best])
        return text.getvalue()


def scoreboard(run: RunData, findings: Iterable[Finding]) -> Scoreboard:
    """The findings that have a column, as a table; without any it is empty."""
    questions = [finding for finding in findings if finding.column and finding.scores]
    scores = [{score.layout: score for score in finding.scores} for finding in questions]
    known = families(run)
    parameters = {row["layout"]: row.get("parameters") for row in run["models"].to_dict("records")}
    rows = []
    for layout in run.layouts:
        own = [by_layout.get(layout) for by_layout in scores]
        count = parameters.get(layout)
        if any(own):
            rows.append(Row(layout, known.get(layout, []), None if formats.missing(count) else count, own))
    return Scoreboard(questions, rows)


def families(run: RunData) -> dict[str, list[str]]:
    """Layout -> the families of its mixers, from the cards that the run keeps; empty for a run without them."""
    cards, mixers = run.environment.get("cards") or {}, run.environment.get("layout_mixers") or {}
    named = {
        str(layout): [str(cards[name]["family"]) for name in names if (cards.get(name) or {}).get("family")]
        for layout, names in mixers.items()
    }
    return {layout: list(dict.fromkeys(own)) for layout, own in named.items() if own}
