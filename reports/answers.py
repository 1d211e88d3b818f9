"""The findings as the page and the Markdown say them: a sentence each, with what it rests on; long lists folded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .fairness import Fairness
from .finding import Finding

FOLDED = 4  # as many bars of one kind are still said one by one
_OUTCOMES = ("not measured", "not met", "met")  # worst first
_LONG = 60  # characters of a first sentence that can stand alone


@dataclass(frozen=True)
class Answer:
    """One question and its answer. first: its first sentence; rest: the others.

    evidence: id of the chart or table that shows it, "" if the page has none. doubts: why it may be unfair.
    """

    finding: Finding
    measure: str
    first: str
    rest: str
    evidence: str
    doubts: list[str]

    @property
    def shown_by(self) -> str:
        return "see the chart" if self.evidence.startswith("figure-") else "see the table"


@dataclass(frozen=True)
class Bars:
    """The bars of one kind: how many were met, and each of them, worst first."""

    topic: str
    measure: str
    met: int
    answers: list[Answer]


def answers(
    findings: Iterable[tuple[str, Finding]], fair: Fairness, elements: Collection[str]
) -> list[Answer | Bars]:
    """The findings in their order, each with its measure; more than `FOLDED` bars of one kind become one answer.

    elements: the ids of the charts and tables that there are.
    """
    every = [_answer(measure, finding, fair, elements) for measure, finding in findings]
    kinds: dict[tuple[str, str], list[Answer]] = {}
    for answer in every:
        kinds.setdefault(_kind(answer), []).append(answer)
    found: list[Answer | Bars] = []
    for (measure, kind), own in kinds.items():
        if kind and len(own) > FOLDED:
            met = sum(answer.finding.winner == "met" for answer in own)
            found.append(Bars(kind, measure, met, sorted(own, key=_badness)))
        else:
            found.extend(own)
    return found


def _answer(measure: str, finding: Finding, fair: Fairness, elements: Collection[str]) -> Answer:
    first, rest = _split(finding.sentence)
    evidence = finding.evidence if finding.evidence in elements else ""
    return Answer(finding, measure, first, rest, evidence, fair.beside(measure))


def _split(text: str) -> tuple[str, str]:
    """The first sentence and the rest; a full stop inside of a name only moves where the page folds."""
    end = text.find(". ", _LONG)
    return (text, "") if end < 0 else (text[: end + 1], text[end + 2 :])


def _kind(answer: Answer) -> tuple[str, str]:
    """What tells kinds of bars apart: `Bar, training step of 512 tokens: times as fast` has its last part."""
    finding = answer.finding
    if finding.winner not in _OUTCOMES:
        return answer.measure, ""
    return answer.measure, finding.topic.partition(": ")[2] or finding.topic


def _badness(answer: Answer) -> tuple[int, float]:
    finding = answer.finding
    value = next((score.value for score in finding.scores if score.value is not None), 0.0)
    return _OUTCOMES.index(str(finding.winner)), value if finding.better == "more" else -value
