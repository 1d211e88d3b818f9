"""The findings as the page and the Markdown say them: a sentence each, with what it rests on; long lists folded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .fairness import Fairness
from .finding import Finding

FOLDED = 4  # as many bars of one measure are still said one by one
_OUTCOMES = ("not measured", "not met", "met")  # of a bar that one layout is held to, worst first
_LONG = 60  # characters of a first sentence that can stand alone


@dataclass(frozen=True)
class Answer:
    """One question and its answer. first: its first sentence; rest: the others.

    evidence: id of the chart or table that shows it, "" if the page has none. doubts: why it may be unfair.
    """

    finding: Finding
    first: str
    rest: str
    evidence: str
    doubts: list[str]

    @property
    def measure(self) -> str:
        return self.finding.measure

    @property
    def shown_by(self) -> str:
        return "see the chart" if self.evidence.startswith("figure-") else "see the table"


@dataclass(frozen=True)
class Bars:
    """The bars of a measure that one layout each is held to, worst first."""

    measure: str
    answers: list[Answer]

    @property
    def met(self) -> int:
        return sum(answer.finding.winner == "met" for answer in self.answers)


def answers(findings: Iterable[Finding], fair: Fairness, elements: Collection[str]) -> list[Answer | Bars]:
    """The findings in their order; more than `FOLDED` bars of a measure become one answer.

    elements: the ids of the charts and tables that there are.
    """
    every = [_answer(finding, fair, elements) for finding in findings]
    held: dict[str, list[Answer]] = {}
    for answer in every:
        if answer.finding.winner in _OUTCOMES:
            held.setdefault(answer.measure, []).append(answer)
    long = {measure: Bars(measure, sorted(own, key=_outcome)) for measure, own in held.items() if len(own) > FOLDED}
    folded: list[Answer | Bars] = [
        long[answer.measure] if answer.finding.winner in _OUTCOMES and answer.measure in long else answer
        for answer in every
    ]
    return [answer for i, answer in enumerate(folded) if not any(answer is other for other in folded[:i])]


def _answer(finding: Finding, fair: Fairness, elements: Collection[str]) -> Answer:
    first, rest = _split(finding.sentence)
    evidence = finding.evidence if finding.evidence in elements else ""
    return Answer(finding, first, rest, evidence, fair.beside(finding.measure))


def _split(text: str) -> tuple[str, str]:
    """The first sentence and the rest; a full stop inside of a name only moves where the page folds."""
    end = text.find(". ", _LONG)
    return (text, "") if end < 0 else (text[: end + 1], text[end + 2 :])


def _outcome(answer: Answer) -> int:
    return _OUTCOMES.index(str(answer.finding.winner))
