"""From the answers of taught models to claims: what stands in a row of a table, every pair, and who is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from .inference import ALPHA, Answers, Ranking, Tally, best_of, compare_recall, holm, recall_interval

Tallies = Mapping[int, Tally]  # by seed


@dataclass(frozen=True)
class Estimate:
    """Recall at one cell: mean of the seeds with its interval, the questions, and the least and greatest seed.

    kind: what the interval is about, see `inference.Estimate`.
    """

    accuracy: float
    low: float
    high: float
    kind: str
    correct: int
    total: int
    seeds: int
    seed_low: float
    seed_high: float


@dataclass(frozen=True)
class Pair:
    """The paired difference first - second with its own 95 % interval, and a verdict corrected for all pairs."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    verdict: str
    separable: bool


def estimate(tallies: Tallies) -> Estimate:
    answers = Answers(tallies)
    interval = recall_interval(answers)
    counts = [tuple(int(part.sum()) for part in answers.tallies[seed]) for seed in answers.seeds]
    shares = [right / total for right, total in counts] or [math.nan]
    correct, total = (sum(part) for part in zip(*counts)) if counts else (0, 0)
    known = interval.value, interval.low, interval.high, interval.kind
    return Estimate(*known, correct, total, len(counts), min(shares), max(shares))


def compare_pairs(answers: Mapping[str, Tallies]) -> list[Pair]:
    """Every pair of layouts that have a seed in common, in the order of `answers`."""
    known = {layout: Answers(tallies) for layout, tallies in answers.items()}
    couples = [(a, b) for a, b in combinations(known, 2) if set(known[a].seeds) & set(known[b].seeds)]
    found = {couple: compare_recall(known[couple[0]], known[couple[1]]) for couple in couples}
    adjusted = holm({c: found[c].p_value if found[c].kind == "new seeds" else 1.0 for c in couples})
    return [
        Pair(
            *couple,
            result.difference,
            result.low,
            result.high,
            result.verdict if adjusted[couple] <= ALPHA else "cannot tell",
            result.separable,
        )
        for couple, result in found.items()
    ]


def rank(answers: Mapping[str, Tallies]) -> tuple[Ranking | None, list[str]]:
    """The ranking of the layouts, and those left out of it since they share no seed with one that has more of them."""
    known = {layout: Answers(tallies) for layout, tallies in answers.items()}
    kept: list[str] = []
    for layout in sorted(known, key=lambda name: -len(known[name].seeds)):
        if known[layout].seeds and all(set(known[layout].seeds) & set(known[other].seeds) for other in kept):
            kept.append(layout)
    ranking = best_of({layout: known[layout] for layout in known if layout in kept}) if kept else None
    return ranking, [layout for layout in known if layout not in kept and known[layout].seeds]
