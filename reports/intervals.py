"""Ends of 95 % intervals for accuracies of several seeds, from counts; arrays [..., seeds, sequences], vectorised.

Two sources of error: `between` seeds, which only few trials show, and `within` the trained models, from the examples.
Resampling three seeds gives ten distinct samples, and intervals that cover 70 % where seeds differ; resampling
sequences and questions as well counts their error twice (Davison and Hinkley 1997, section 3.8). So the levels of the
bootstrap are: seeds drawn from a normal law on the logit scale whose mean and variance are themselves drawn, given the
few that were seen; below them the error of the examples, estimated from whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

ALPHA = 0.05
LEAST_SEEDS = 3
DRAWS = 2048
# Seeds may agree by chance. Their error is taken as at least this part of the examples' error: 1 covers 99 % where
# seeds are truly equal, 0 covers 92 % where right or wrong answers are few and often as many.
FLOOR = 0.5
WIDEST = 2.0  # no greater standard deviation of logits between seeds is drawn, unless more was observed


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, its standard error over seeds and over examples (fixed models), and the means, [..., seeds]."""

    mean: Floats
    between: Floats
    within: Floats
    means: Floats

    @property
    def seeds(self) -> int:
        return int(self.means.shape[-1])

    def error(self, alpha: float = ALPHA) -> Floats:
        """Half the width of a 1 - alpha interval: Student's t over seeds, or with too few of them the examples'."""
        examples = stats.norm.isf(alpha / 2) * self.within
        if self.seeds < LEAST_SEEDS:
            return examples
        return np.maximum(stats.t.isf(alpha / 2, self.seeds - 1) * self.between, FLOOR * examples)

    def tail(self, gap: Floats, floor: float = FLOOR) -> Floats:
        """One-sided p value of a mean that lies `gap` above the null."""
        with np.errstate(divide="ignore", invalid="ignore"):
            examples = stats.norm.sf(gap / (self.within * (1.0 if self.seeds < LEAST_SEEDS else floor)))
            if self.seeds < LEAST_SEEDS:
                return examples
            seeds = np.where(self.between > 0, stats.t.sf(gap / self.between, self.seeds - 1), gap <= 0)
        return np.maximum(examples, seeds)


def spread(right: Floats, total: Floats) -> Spread:
    """From right answers (or their differences, of two layouts) and questions, [..., seeds, sequences] each.

    A sequence without questions counts for nothing. The examples' error is that of whole sequences, so it holds
    whatever the correlation within a sequence; at least that of one answer turned.
    """
    size, number = total.sum(-1), (total > 0).sum(-1)
    means = right.sum(-1) / size
    residual = ((right - means[..., None] * total) ** 2).sum(-1) * number / np.maximum(number - 1, 1)
    within = np.sqrt((np.maximum(residual, 1) / size**2).sum(-1)) / means.shape[-1]
    seeds = means.shape[-1]
    between = means.std(-1, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.full_like(within, np.nan)
    return Spread(means.mean(-1), between, within, means)


def accuracy_ends(right: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Low and high of the mean accuracy over new seeds (over these models with fewer than three), [...] each.

    The wider, at each end, of a score interval and of the draws of `_drawn`. Score interval: Wilson's (1927) with the
    number of trials that has the observed error (Korn and Graubard 1998), where the error is `Spread.error`. It alone
    covers 88 % where seeds differ much and the accuracy is near 0 or 1, the draws alone 84 % where they do not.
    """
    if right.ndim > 2:
        return _accuracy_ends(right, total)
    one, other = (np.asarray(part, float).tobytes() for part in (right, total))
    return _of_one(one, other, right.shape)


@lru_cache(maxsize=512)  # a layout is compared with many others, on the same answers
def _of_one(right: bytes, total: bytes, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    return _accuracy_ends(np.frombuffer(right).reshape(shape), np.frombuffer(total).reshape(shape))


def _accuracy_ends(right: Floats, total: Floats) -> tuple[Floats, Floats]:
    found, questions = spread(right, total), total.sum((-1, -2))
    low, high = _score(found, questions)
    if found.seeds < LEAST_SEEDS:
        return low, high
    drawn_low, drawn_high = _drawn(found, total.sum(-1))
    return np.minimum(low, drawn_low), np.maximum(high, drawn_high)


def difference_ends(a: Floats, b: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Low and high of the difference of two accuracies, a - b, from right answers to the same questions, [...] each.

    Student's t of the differences of equal seeds. The end away from zero is moved out by as much as the intervals of
    the two accuracies are wider on that side than their t intervals, added in squares (Newcombe 1998, Zou and Donner
    2008): near 0 and 1 seeds are skewed, and the t interval alone covers 87 %.
    """
    found = spread(a - b, total)
    error = found.error()
    if found.seeds < LEAST_SEEDS:
        return np.maximum(found.mean - error, -1), np.minimum(found.mean + error, 1)
    first, second = spread(a, total), spread(b, total)
    (low_a, high_a), (low_b, high_b) = accuracy_ends(a, total), accuracy_ends(b, total)
    straight = np.hypot(first.error(), second.error())
    above = np.hypot(high_a - first.mean, second.mean - low_b) / straight
    below = np.hypot(first.mean - low_a, high_b - second.mean) / straight
    low = found.mean - error * np.where(found.mean < 0, np.maximum(below, 1), 1)
    high = found.mean + error * np.where(found.mean > 0, np.maximum(above, 1), 1)
    return np.maximum(low, -1), np.minimum(high, 1)


def chance_tail(right: Floats, total: Floats, chance: float) -> Floats:
    """One-sided p value of "no better than chance" for at least three seeds, [...].

    The greatest of three: of the examples' error, of Student's t over seeds, and of the same for logits, as the first
    t errs where seeds differ much about a chance of one half.
    """
    found = spread(right, total)
    logits = _logits(found, total.sum(-1))
    error = logits.std(-1, ddof=1) / np.sqrt(found.seeds)
    gap = logits.mean(-1) - special.logit(chance)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(error > 0, stats.t.sf(gap / error, found.seeds - 1), gap <= 0)
    return np.maximum(tail, found.tail(found.mean - chance, floor=1.0))


def _score(found: Spread, questions: Floats) -> tuple[Floats, Floats]:
    z = stats.norm.isf(ALPHA / 2)
    middle = (found.mean * questions + 0.5) / (questions + 1)
    binomial = z * np.sqrt(middle * (1 - middle) / questions)
    part = 1.0 if found.seeds < LEAST_SEEDS else FLOOR
    trials = middle * (1 - middle) * (z / np.maximum(found.error(), part * binomial)) ** 2
    shrink = 1 + z * z / trials
    centre = (found.mean + z * z / (2 * trials)) / shrink
    half = z / shrink * np.sqrt(found.mean * (1 - found.mean) / trials + (z / (2 * trials)) ** 2)
    low = np.where(found.mean == 0, 0, np.maximum(centre - half, 0))
    return low, np.where(found.mean == 1, 1, np.minimum(centre + half, 1))


def _drawn(found: Spread, questions: Floats) -> tuple[Floats, Floats]:
    """Quantiles of drawn mean accuracies (generalised inference: Krishnamoorthy and Mathew 2003, for logits).

    A draw takes the variance and then the mean of the seeds' logits, given their observed ones; takes from the
    variance what the examples explain; and averages the accuracy over seeds that vary by the rest.
    """
    normal, chi2 = _draws(found.seeds - 1)
    logits = _logits(found, questions)
    rates = special.expit(logits)
    pooled = found.mean * (1 - found.mean)
    sizes = questions.mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(pooled > 0, found.within**2 * found.seeds * sizes / pooled, 1)
    noise = np.clip(effect, 1, None) * (1 / (questions * rates * (1 - rates))).mean(-1)
    variance = (found.seeds - 1) * logits.var(-1, ddof=1)[..., None] / chi2
    centre = logits.mean(-1)[..., None] - normal * np.sqrt(variance / found.seeds)
    widest = np.maximum(WIDEST, logits.std(-1, ddof=1))[..., None]
    scale = np.minimum(np.sqrt(np.maximum(variance - noise[..., None], 0)), widest)
    points, weights = special.roots_hermitenorm(9)
    drawn = sum(w * special.expit(centre + scale * x) for x, w in zip(points, weights / weights.sum()))
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=-1)
    return low, high


def _logits(found: Spread, questions: Floats) -> Floats:
    """Logits of the seeds' accuracies, kept finite by half an answer on either side, [..., seeds]."""
    return special.logit((found.means * questions + 0.5) / (questions + 1))


@lru_cache
def _draws(freedom: int) -> tuple[Floats, Floats]:
    """Normal and chi-square draws, evenly spread over their plane, [draws] each."""
    u = stats.qmc.Sobol(2, seed=0).random(DRAWS)
    return stats.norm.ppf(u[:, 0]), stats.chi2.ppf(u[:, 1], freedom)
