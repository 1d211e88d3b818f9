"""From answers to claims: estimates with intervals, and what paired differences allow to say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

Hits = Mapping[int, list[str]]  # seed -> one string of answers for each sequence


@dataclass(frozen=True)
class Estimate:
    accuracy: float
    low: float
    high: float
    correct: int
    total: int
    seeds: int
    seed_low: float
    seed_high: float


@dataclass(frozen=True)
class Difference:
    """first minus second"""

    first: str
    second: str
    value: float
    low: float
    high: float
    verdict: str


def _shares(hits: Hits) -> list[float]:
    return [sum(t.count("1") for t in texts) / max(1, sum(t.count("1") + t.count("0") for t in texts)) for texts in hits.values()]


def estimate_recall(hits: Hits) -> Estimate:
    right = sum(t.count("1") for texts in hits.values() for t in texts)
    total = right + sum(t.count("0") for texts in hits.values() for t in texts)
    shares = _shares(hits)
    p = right / total if total else math.nan
    half = 2 * math.sqrt(max(p * (1 - p), 0.001) / total) if total else math.nan
    return Estimate(p, max(0, p - half), min(1, p + half), right, total, len(hits), min(shares), max(shares))


def compare_all(answers: Mapping[str, Hits]) -> list[Difference]:
    found = []
    for a, b in combinations(answers, 2):
        d = float(np.mean(_shares(answers[a])) - np.mean(_shares(answers[b])))
        half = NormalDist().inv_cdf(0.975) * 0.02
        verdict = "better" if d > half else "worse" if d < -half else "cannot tell"
        found.append(Difference(a, b, d, d - half, d + half, verdict))
    return found
