"""Numbers described: medians with quartiles, rounds and bits pooled over seeds. Conclusions are in `inference`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A value and the range that its measurement leaves open: a confidence interval, or the quartiles."""

    value: float
    low: float
    high: float


def quartiles(samples: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Median, first and third quartile (linear interpolation)."""
    q1, median, q3 = np.quantile(np.asarray(samples, dtype=float), [0.25, 0.5, 0.75])
    return Interval(float(median), float(q1), float(q3))


def bits_per_byte(nats: float) -> float:
    """Bits for nats, where a token is one byte."""
    return nats / math.log(2)


def pool_speed(speed: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rounds of all seeds taken together; median and quartiles of `seconds` and of `tokens_per_second`.

    A line without its rounds counts as its own median and quartiles.
    """
    columns = ["tokens_per_second", "low", "high", "seconds", "seconds_low", "seconds_high", "rounds", "seeds"]
    rows = []
    for key, group in _groups(speed, by):
        if len(group) == 1:
            line = group.iloc[0]
            rates = Interval(line["tokens_per_second"], line["low"], line["high"])
            seconds = Interval(line["seconds"], line["seconds_low"], line["seconds_high"])
        else:
            samples = rounds_of(group)
            tokens = float((group["tokens_per_second"] * group["seconds"]).median())
            seconds, rates = quartiles(samples), quartiles(tokens / samples)
        values = (rates.value, rates.low, rates.high, seconds.value, seconds.low, seconds.high)
        seeds = group["seed"].nunique()
        rows.append(dict(zip([*by, *columns], [*key, *values, int(group["rounds"].sum()), seeds])))
    return pd.DataFrame(rows, columns=[*by, *columns])


def rounds_of(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The seconds of all rounds of `rows`; of a row without rounds, its own."""
    pairs = zip(rows["samples"].tolist(), rows["seconds"].tolist())
    known = [samples if isinstance(samples, Sized) and len(samples) else [seconds] for samples, seconds in pairs]
    return np.concatenate([np.asarray(own, dtype=float) for own in known]) if known else np.empty(0)


def pool_perplexity(perplexity: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Bits per byte averaged over the tokens of everything but `by`, and the least and greatest of a single seed.

    `perplexity` has `tokens`, and in `nats` their mean negative log-likelihood.
    """
    columns = ["tokens", "bits_per_byte", "seeds", "seed_low", "seed_high"]
    rows = []
    for key, group in _groups(perplexity, by):
        summed = group.assign(nats=group["nats"] * group["tokens"])
        single = summed.groupby("seed")[["nats", "tokens"]].sum()
        singles = [bits_per_byte(n / t) for n, t in zip(single["nats"], single["tokens"])]
        tokens = int(summed["tokens"].sum())
        mean = bits_per_byte(float(summed["nats"].sum()) / tokens)
        values = (tokens, mean, len(singles), min(singles), max(singles))
        rows.append(dict(zip([*by, *columns], [*key, *values])))
    return pd.DataFrame(rows, columns=[*by, *columns])


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples; what type a column has is known to those who ask for it."""
    return frame.itertuples()


def _groups(frame: pd.DataFrame, by: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in the order of their first row."""
    return [(tuple(key), group) for key, group in frame.groupby(by, sort=False, dropna=False)] if len(frame) else []
