import math
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.reports.labels import beside_points, spread
from mixerzoo.reports.statistics import (
    Interval,
    bits_per_byte,
    pool_perplexity,
    pool_recall,
    pool_speed,
    quartiles,
    ratio,
    wilson,
)


# Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    interval = wilson(correct, total)
    assert interval.value == correct / total
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_is_symmetric_and_stays_within_bounds(counts: tuple[int, int]) -> None:
    correct, total = counts
    interval, mirrored = wilson(correct, total), wilson(total - correct, total)
    assert 0 <= interval.low <= interval.high <= 1
    assert total == 0 or interval.low <= interval.value <= interval.high
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high))


def test_wilson_refuses_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="7 of 5"):
        wilson(7, 5)


def test_quartiles_ratio_and_bits() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == Interval(3, 2, 4)
    assert ratio(Interval(6, 5, 8), Interval(3, 2, 4)) == Interval(2, 5 / 4, 4)
    assert bits_per_byte(3 * math.log(2)) == pytest.approx(3)


def test_intervals_that_share_a_point_overlap() -> None:
    assert Interval(2, 1, 3).overlaps(Interval(4, 3, 5))
    assert not Interval(2, 1, 2.9).overlaps(Interval(4, 3, 5))


def test_recall_is_pooled_over_seeds_and_keeps_their_spread() -> None:
    columns = ["layout", "seed", "depth", "correct", "total", "chance"]
    rows = [("a", 0, 0.0, 8, 10, 0.1), ("a", 0, 0.5, 6, 10, 0.1), ("a", 1, 0.0, 5, 10, 0.1), ("a", 1, 0.5, 3, 10, 0.1)]
    pooled = pool_recall(pd.DataFrame(rows, columns=columns), ["layout"]).iloc[0]
    assert (pooled["correct"], pooled["total"], pooled["accuracy"], pooled["seeds"]) == (22, 40, 0.55, 2)
    assert (pooled["seed_low"], pooled["seed_high"]) == (0.4, 0.7)
    assert (pooled["low"], pooled["high"]) == (wilson(22, 40).low, wilson(22, 40).high)


def test_rounds_of_several_seeds_are_taken_together() -> None:
    line = {"layout": "a", "low": 1.0, "high": 1.0, "seconds_low": 1.0, "seconds_high": 1.0, "rounds": 3}
    first = {**line, "seed": 0, "tokens_per_second": 5.0, "seconds": 2.0, "samples": [1.0, 2.0, 4.0]}
    second = {**line, "seed": 1, "tokens_per_second": 1.25, "seconds": 8.0, "samples": [5.0, 8.0]}
    pooled = pool_speed(pd.DataFrame([first, second]), ["layout"]).iloc[0]
    assert (pooled["seconds"], pooled["seconds_low"], pooled["seconds_high"]) == (4, 2, 5)
    assert (pooled["tokens_per_second"], pooled["low"], pooled["high"]) == (2.5, 2, 5)
    assert pooled["rounds"] == 6


def test_bits_per_byte_weighs_buckets_by_their_tokens() -> None:
    rows = [("a", 0, 100, math.log(2)), ("a", 0, 300, 3 * math.log(2)), ("a", 1, 400, 2 * math.log(2))]
    pooled = pool_perplexity(pd.DataFrame(rows, columns=["layout", "seed", "tokens", "nats"]), ["layout"]).iloc[0]
    assert pooled["bits_per_byte"] == pytest.approx((100 * 1 + 300 * 3 + 400 * 2) / 800)
    assert (pooled["seed_low"], pooled["seed_high"]) == pytest.approx((2.0, 2.5))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_spread_labels_keep_their_distance_and_order(positions: list[float]) -> None:
    placed = spread(positions, gap=16, low=0, high=300)
    order = sorted(range(len(positions)), key=lambda i: placed[i])
    assert all(placed[b] - placed[a] >= 16 - 1e-6 for a, b in pairwise(order))
    assert [positions[i] for i in order] == sorted(positions)
    assert all(-1e-6 <= p <= 300 + 1e-6 for p in placed) or len(positions) == 1


def test_labels_of_close_points_do_not_lie_on_each_other() -> None:
    places = beside_points([(100, 100), (104, 100), (102, 103)], ["first", "second", "third"], [10, 10, 10], 600)
    assert len({(p.align, p.dy) for p in places}) == 3


def test_a_label_at_the_right_edge_goes_to_the_left() -> None:
    assert beside_points([(590, 50)], ["a long name"], [10], 600)[0].align == "right"
