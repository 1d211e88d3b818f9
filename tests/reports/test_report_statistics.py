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
    pool_speed,
    quartiles,
)


def test_quartiles_and_bits() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == Interval(3, 2, 4)
    assert bits_per_byte(3 * math.log(2)) == pytest.approx(3)


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


def test_a_label_does_not_lie_on_a_line() -> None:
    (alone,) = beside_points([(100, 100)], ["a name"], [5], 600)
    (aside,) = beside_points([(100, 100)], ["a name"], [5], 600, lines=[((100, 100), (200, 100))])
    assert (alone.align, alone.dy) == ("left", 0) and aside.dy != 0


def test_a_label_at_the_right_edge_goes_to_the_left() -> None:
    assert beside_points([(590, 50)], ["a long name"], [10], 600)[0].align == "right"
