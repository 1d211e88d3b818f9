"""How time and memory grow with length: the exponent of a power law, fitted to the greater lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .inference import ALPHA, DRAWS, FEW_ROUNDS, LEAST_ROUNDS, MANY, drawn_medians

LEAST_LENGTHS = 3


@dataclass(frozen=True)
class Growth:
    """`length^exponent`, with a 95 % interval; nan where the rounds are too few for one.

    lengths: that it was fitted to, rising. The interval is about new rounds at these lengths; whether the law holds,
    and beyond them, it does not say.
    """

    exponent: float
    low: float
    high: float
    lengths: tuple[int, ...]

    @property
    def text(self) -> str:
        """`length^1.02 [1.00, 1.05]`."""
        # a minus sign is no news where the number rounds to 0
        value, low, high = (f"{round(x, 2) + 0.0:.2f}" for x in (self.exponent, self.low, self.high))
        return f"length^{value}" + ("" if math.isnan(self.low) else f" [{low}, {high}]")


def growth(samples: Mapping[int, Sequence[float]]) -> Growth | None:
    """Least squares of the logarithm of the medians over that of the length, on the upper half of the lengths, at
    least three; None with fewer, or where a median is not positive.

    samples: length -> rounds (seconds, bytes, ...). Interval: percentile bootstrap of the rounds at every length; with
    fewer than ten at one of them at least z standard errors, with fewer than five none, as in `ratio_of_medians`.
    """
    known = sorted(length for length, rounds in samples.items() if len(rounds))
    lengths = known[-max(LEAST_LENGTHS, math.ceil(len(known) / 2)) :]
    medians = np.array([np.median(samples[length]) for length in lengths])
    if len(lengths) < LEAST_LENGTHS or not (medians > 0).all():
        return None
    centred = np.log(lengths) - np.mean(np.log(lengths))
    slopes = centred / (centred**2).sum()
    exponent = float(slopes @ np.log(medians))
    rounds = [np.asarray(samples[length], float) for length in lengths]
    least = min(map(len, rounds))
    if least < LEAST_ROUNDS:
        return Growth(exponent, math.nan, math.nan, tuple(lengths))
    rng = np.random.default_rng(0)
    drawn = [
        np.median(x[rng.integers(len(x), size=(DRAWS, len(x)))], axis=1)
        if len(x) <= MANY
        else drawn_medians(x.tobytes(), place)
        for place, x in enumerate(rounds, 1)
    ]
    found = np.log(np.stack(drawn, axis=1)) @ slopes
    low, high = (float(end) for end in np.quantile(found, [ALPHA / 2, 1 - ALPHA / 2]))
    if least < FEW_ROUNDS:
        half = float(stats.norm.isf(ALPHA / 2) * found.std())
        low, high = min(low, exponent - half), max(high, exponent + half)
    return Growth(exponent, low, high, tuple(lengths))
