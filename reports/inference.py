"""What may be concluded: intervals over seeds, paired differences, and best-of statements, each with its error rate.

Questions of one sequence share it and sequences share a trained model, so the trained models (seeds) are the
independent trials. `docs/statistics.md` has the measured coverage of every interval here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from .intervals import ALPHA, DRAWS, LEAST_SEEDS, Floats, accuracy_ends, chance_tail, difference_ends, spread

LEAST_ROUNDS = 5
FEW_ROUNDS = 10
MANY = 128  # rounds, above which resamples are not drawn one by one

Rounds = Sequence[float] | Floats
Kind = Literal["new seeds", "these models", "rounds", "nothing"]
Verdict = Literal["better", "worse", "cannot tell"]
Name = TypeVar("Name", bound=Hashable)


class Tally(NamedTuple):
    """Right answers and questions of every sequence that one model was asked about, [sequences] each."""

    right: NDArray[Any]
    total: NDArray[Any]

    @classmethod
    def of(cls, hits: Sequence[str], recent: bool = False) -> Tally:
        """From the strings of a results file: `1` right, `0` wrong, and `r`, `w` for recent answers.

        Takes either the recent answers or the others, never both. Raises `ValueError` for another character.
        """
        if unknown := {mark for line in hits for mark in line.strip("01rw")} - set("01rw"):
            raise ValueError(f"answers must consist of 0, 1, r and w, got {sorted(unknown)}")
        right, wrong = ("r", "w") if recent else ("1", "0")
        counts = [(line.count(right), line.count(wrong)) for line in hits]
        of_each = np.array(counts, np.uint32).reshape(-1, 2)
        return cls(of_each[:, 0].copy(), of_each.sum(1, dtype=np.uint32))

    @property
    def share(self) -> float:
        """Of all questions, the part that was answered right; nan without questions."""
        return float(self.right.sum() / self.total.sum()) if self.total.any() else math.nan


@dataclass(frozen=True, eq=False)
class Answers:
    """Right and wrong answers of one layout at one cell, by seed.

    Two layouts are compared on the same examples: equal seed, equal place, equally many questions.
    """

    tallies: Mapping[int, Tally]

    @classmethod
    def from_strings(cls, hits: Mapping[int, Sequence[str]], recent: bool = False) -> Answers:
        """See `Tally.of`."""
        return cls({seed: Tally.of(lines, recent) for seed, lines in hits.items()})

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds that have at least one question, in rising order."""
        return sorted(seed for seed, tally in self.tallies.items() if tally.total.any())

    def counts(self, seeds: Sequence[int]) -> tuple[Floats, Floats]:
        """Right answers and questions, [seeds, sequences] each; a missing sequence has no questions."""
        rows = [self._places[seed] for seed in seeds]
        right, total = self._table
        there = total[rows]
        longest = int(np.flatnonzero(there.any(0))[-1]) + 1 if there.any() else 0
        return right[rows, :longest], there[:, :longest]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {seed: place for place, seed in enumerate(self.seeds)}

    @cached_property
    def _table(self) -> tuple[Floats, Floats]:
        longest = max((len(self.tallies[seed].total) for seed in self.seeds), default=0)
        right, total = np.zeros((2, len(self.seeds), longest))
        for place, seed in enumerate(self.seeds):
            tally = self.tallies[seed]
            right[place, : len(tally.right)], total[place, : len(tally.total)] = tally
        return right, total


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and what the interval is about.

    kind: "new seeds", "these models" (new sequences, but not new seeds: too few were trained) or "nothing" (no
    interval can be given: low and high are nan).
    """

    value: float
    low: float
    high: float
    seeds: int
    kind: Kind


@dataclass(frozen=True)
class Comparison:
    """A difference a - b (or, for speed, a ratio a / b) with its 95 % interval and what it allows to say.

    verdict: whether `a` is better than `b`; it is about new seeds, or new rounds. p_value: two-sided, not corrected.
    seeds: how many both have (for speed, how many rounds).
    separable: with too few seeds, whether the sign of the difference holds for new examples to these models.
    """

    difference: float
    low: float
    high: float
    verdict: Verdict
    p_value: float
    seeds: int
    kind: Kind
    separable: bool = False


@dataclass(frozen=True)
class Ranking:
    """leader: best in this data. best: the layout that may be called the single best, if one may.

    tied: who cannot be told apart from the leader, none if `best` is said. comparisons: the leader with each other
    layout, their p values not corrected; adjusted: these p values corrected for the number of layouts.
    """

    leader: str
    best: str | None
    tied: tuple[str, ...]
    comparisons: dict[str, Comparison]
    adjusted: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Solved:
    """Tokens to solve a task over seeds. median: nan while fewer than half of the seeds solved it."""

    median: float
    solved: int
    seeds: int
    budget: int


def recall_interval(answers: Answers) -> Estimate:
    """Accuracy over new seeds, sequences and questions; over new examples to these models with fewer than three seeds.

    The mean of the seeds' accuracies. See `intervals.accuracy_ends` for how the ends are made.
    """
    seeds = answers.seeds
    if not seeds:
        return Estimate(math.nan, math.nan, math.nan, 0, "nothing")
    right, total = answers.counts(seeds)
    low, high = accuracy_ends(right, total)
    kind: Kind = "new seeds" if len(seeds) >= LEAST_SEEDS else "these models"
    return Estimate(float(spread(right, total).mean), float(low), float(high), len(seeds), kind)


def compare_recall(a: Answers, b: Answers) -> Comparison:
    """Difference of the accuracies, a - b, on the seeds that both have and on the same examples.

    See `intervals.difference_ends` for how the ends are made; the verdict says on which side of zero they lie. Raises
    `ValueError` if the two answered different questions.
    """
    common = [seed for seed in a.seeds if seed in b._places]
    if not common:
        return Comparison(math.nan, math.nan, math.nan, "cannot tell", math.nan, 0, "nothing")
    (right, total), (other, others) = a.counts(common), b.counts(common)
    if total.shape != others.shape or not np.array_equal(total, others):
        raise ValueError(
            f"layouts are compared on the same examples, got {total.sum(1)} and {others.sum(1)} questions of seeds "
            f"{common}; evaluate both with the same task, length, load and passes"
        )
    low, high = difference_ends(right, other, total)
    found = spread(right - other, total)
    p = min(1.0, 2 * float(found.tail(abs(found.mean))))
    enough = len(common) >= LEAST_SEEDS
    verdict = _verdict(float(found.mean), p) if enough else "cannot tell"
    kind: Kind = "new seeds" if enough else "these models"
    known = not enough and p <= ALPHA
    return Comparison(float(found.mean), float(low), float(high), verdict, p, len(common), kind, known)


def best_of(answers_by_layout: Mapping[str, Answers]) -> Ranking:
    """Which layout recalls best, and who cannot be told apart from it."""
    values = {layout: recall_interval(answers).value for layout, answers in answers_by_layout.items()}
    return _ranking(values, lambda a, b: compare_recall(answers_by_layout[a], answers_by_layout[b]))


def above_chance(answers_by_layout: Mapping[str, Answers], chance: float) -> dict[str, bool]:
    """Which layouts recall better than `chance` for new seeds: one wrong claim among all in at most 5 % of runs.

    One-sided tests, corrected by Holm's method. Fewer than three seeds claim nothing.
    """
    p_values = {}
    for layout, answers in answers_by_layout.items():
        p_values[layout] = 1.0
        if len(answers.seeds) >= LEAST_SEEDS:
            right, total = answers.counts(answers.seeds)
            p_values[layout] = float(chance_tail(right, total, chance))
    return {layout: p <= ALPHA for layout, p in holm(p_values).items()}


def ratio_of_medians(a_rounds: Rounds, b_rounds: Rounds, paired: bool = True) -> Comparison:
    """How many times the median of `a` is that of `b` (seconds a round); `a` is "better" if it takes less.

    Percentile bootstrap of the rounds, together for both where they were taken in turn (`paired`: round i of one beside
    round i of the other). With fewer than ten rounds at least z standard errors of the log ratio, as the percentiles
    of five cover 92 %; with fewer than five no interval. p_value: Student's t of the log ratio, more careful than the
    interval, for claims among many. Raises `ValueError` for rounds that cannot be.
    """
    a, b = np.asarray(a_rounds, float), np.asarray(b_rounds, float)
    if min(a.size, b.size) == 0 or min(a.min(), b.min()) <= 0:
        raise ValueError("rounds must be one or more positive numbers of seconds for both")
    if paired and len(a) != len(b):
        raise ValueError(f"rounds taken in turn must be as many for both, got {len(a)} and {len(b)}; use paired=False")
    rounds, ratio = min(len(a), len(b)), float(np.median(a) / np.median(b))
    if rounds < LEAST_ROUNDS:
        return Comparison(ratio, math.nan, math.nan, "cannot tell", math.nan, rounds, "nothing")
    if paired:
        together = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
        drawn = np.log(np.median(a[together], axis=1) / np.median(b[together], axis=1))
    else:
        drawn = np.log(drawn_medians(a.tobytes()) / drawn_medians(b.tobytes(), len(a)))
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    centre, error = math.log(ratio), float(drawn.std())
    if rounds < FEW_ROUNDS:
        z = stats.norm.isf(ALPHA / 2)
        low, high = min(low, centre - z * error), max(high, centre + z * error)
    p = float(2 * special.stdtr(rounds - 1, -abs(centre) / error)) if error else float(centre == 0)
    verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "cannot tell"
    return Comparison(ratio, math.exp(low), math.exp(high), verdict, p, rounds, "rounds")


@lru_cache(maxsize=1024)  # of layouts that are compared with many others, or in several places
def drawn_medians(rounds: bytes, others: int = 0) -> Floats:
    """Medians of resampled rounds, [draws]. rounds: as the bytes of float64. others: how many rounds are resampled
    before, of what they are compared with.

    Of more than `MANY` rounds the middle of a resample is drawn directly: its place among the rounds in rising order is
    that of the middle of as many uniform numbers, so the medians have the same law.
    """
    x = np.frombuffer(rounds)
    rng = np.random.default_rng([0, others] if len(x) > MANY else 0)
    if len(x) <= MANY:
        if others:
            rng.integers(others, size=(DRAWS, others))
        return np.median(x[rng.integers(len(x), size=(DRAWS, len(x)))], axis=1)
    size, ordered = len(x), np.sort(x)
    lower = rng.beta((size + 1) // 2, size // 2 + 1, size=DRAWS)
    if size % 2:
        return ordered[(size * lower).astype(int)]
    upper = lower + (1 - lower) * (1 - rng.random(DRAWS) ** (2 / size))  # the least of the half above it
    return (ordered[(size * lower).astype(int)] + ordered[np.minimum((size * upper).astype(int), size - 1)]) / 2


def fastest(rounds_by_layout: Mapping[str, Rounds], paired: bool = True) -> Ranking:
    """Which layout has the shortest rounds (seconds), and who cannot be told apart from it."""
    values = {layout: -float(np.median(rounds)) for layout, rounds in rounds_by_layout.items()}
    rounds = rounds_by_layout
    return _ranking(values, lambda a, b: ratio_of_medians(rounds[a], rounds[b], paired))


def seed_mean(values: Sequence[float]) -> Estimate:
    """Mean of one number per seed with its t interval.

    None with fewer than three seeds, nor where all are equal: a number too coarse to differ shows no spread.
    """
    x = np.asarray(values, float)
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < LEAST_SEEDS or np.ptp(x) == 0:
        return Estimate(mean, math.nan, math.nan, len(x), "nothing")
    half = float(stats.t.isf(ALPHA / 2, len(x) - 1) * stats.sem(x))
    return Estimate(mean, mean - half, mean + half, len(x), "new seeds")


def compare_seeds(a: Mapping[int, float], b: Mapping[int, float], lower_is_better: bool = True) -> Comparison:
    """Difference a - b of one number per seed (bits per byte, tokens), on the seeds that both have: paired t test."""
    common = sorted(a.keys() & b.keys())
    gaps = np.array([a[seed] - b[seed] for seed in common])
    found = seed_mean(gaps.tolist())
    if found.kind == "nothing":
        return Comparison(found.value, math.nan, math.nan, "cannot tell", math.nan, len(common), "nothing")
    p = float(2 * stats.t.sf(abs(found.value) / stats.sem(gaps), len(gaps) - 1))
    verdict = _verdict(-found.value if lower_is_better else found.value, p)
    return Comparison(found.value, found.low, found.high, verdict, p, len(common), "new seeds")


def compare_successes(a: Mapping[int, bool], b: Mapping[int, bool]) -> Comparison:
    """Difference a - b of the shares of seeds that succeeded, on the seeds that both have: exact sign test.

    No interval; with fewer than six seeds the test cannot tell, whatever they are.
    """
    common = sorted(a.keys() & b.keys())
    only_a, only_b = sum(a[s] and not b[s] for s in common), sum(b[s] and not a[s] for s in common)
    if len(common) < LEAST_SEEDS:
        gap = (only_a - only_b) / len(common) if common else math.nan
        return Comparison(gap, math.nan, math.nan, "cannot tell", math.nan, len(common), "nothing")
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    gap = (only_a - only_b) / len(common)
    return Comparison(gap, math.nan, math.nan, _verdict(gap, p), p, len(common), "new seeds")


def solved(tokens_to_solve: Sequence[int | None], budget: int) -> Solved:
    """Tokens to solve, where None did not solve within `budget` tokens.

    median: where the estimated part that has solved first reaches one half (Kaplan and Meier 1958).
    """
    unsolved = [tokens is None for tokens in tokens_to_solve]
    median = math.nan
    if not all(unsolved):
        reached = [budget if tokens is None else tokens for tokens in tokens_to_solve]
        curve = stats.ecdf(stats.CensoredData.right_censored(reached, unsolved)).cdf
        past = curve.quantiles[curve.probabilities >= 0.5 - 1e-12]
        median = float(past[0]) if len(past) else math.nan
    return Solved(median, len(unsolved) - sum(unsolved), len(unsolved), budget)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p values: rejecting those <= alpha makes any false rejection at most alpha likely (Holm 1979)."""
    order = sorted(p_values, key=lambda name: p_values[name])
    scaled = [min(1.0, p_values[name] * (len(order) - rank)) for rank, name in enumerate(order)]
    return dict(zip(order, itertools.accumulate(scaled, max)))


def _verdict(gain: float, p_value: float) -> Verdict:
    if not p_value <= ALPHA:
        return "cannot tell"
    return "better" if gain > 0 else "worse"


def _ranking(values: Mapping[str, float], compare: Callable[[str, str], Comparison]) -> Ranking:
    """The leader is chosen from the data that it is then tested with, so each claim guards against that.

    Single best: it must beat every other at 5 %; a layout that is not the best must then beat one that is its equal
    or better, and beat the rest by chance too (intersection-union test, Berger 1982). Otherwise, told apart from the
    leader is who loses in Holm's correction over all pairs, as any of them might have been the leader's.
    """
    known = [layout for layout, value in values.items() if not math.isnan(value)]
    if not known:
        raise ValueError(f"a ranking needs a layout with a result, got none in {list(values)}")
    leader = max(known, key=lambda layout: values[layout])
    others = [layout for layout in known if layout != leader]
    pairs = {pair: compare(*pair) for pair in itertools.combinations([leader, *others], 2)}
    comparisons = {other: pairs[leader, other] for other in others}
    every = holm({pair: c.p_value if c.kind in ("new seeds", "rounds") else 1.0 for pair, c in pairs.items()})
    adjusted = {other: every[leader, other] for other in others}
    won = [other for other in others if comparisons[other].verdict == "better"]
    if others and won == others:
        return Ranking(leader, leader, (), comparisons, adjusted)
    tied = tuple(other for other in others if other not in won or adjusted[other] > ALPHA)
    return Ranking(leader, None, tied, comparisons, adjusted)
