"""Exponents of growth: known laws, intervals that cover them, and where none is claimed."""

import math

import numpy as np
import pytest
from mixerzoo.reports.growth import growth

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]


def rounds(exponent, lengths=LENGTHS, noise=0.1, count=15, seed=0, start=0.0):
    rng = np.random.default_rng(seed)
    return {n: (start + 1e-6 * n**exponent) * np.exp(noise * rng.normal(size=count)) for n in lengths}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_a_power_law_is_found_on_the_upper_half(exponent):
    found = growth(rounds(exponent, noise=0.0))
    assert found.exponent == pytest.approx(exponent, abs=1e-9) and found.lengths == (2048, 4096, 8192)
    assert found.low == pytest.approx(found.high) == pytest.approx(exponent)


def test_a_cost_of_every_call_does_not_hide_the_growth():
    upper = growth(rounds(1.0, noise=0.0, start=1e-4))
    all_of_them = np.polyfit(np.log(LENGTHS), np.log([1e-4 + 1e-6 * n for n in LENGTHS]), 1)[0]
    assert all_of_them < upper.exponent < 1
    longer = {**rounds(1.0, noise=0.0, start=1e-4, lengths=[2**i for i in range(8, 21)])}
    assert growth(longer).exponent == pytest.approx(1, abs=0.01)


def test_the_interval_covers_the_law():
    found = [growth(rounds(1.2, seed=seed, count=count)) for count in (5, 15) for seed in range(150)]
    for few in (found[:150], found[150:]):
        covered = np.mean([g.low <= 1.2 <= g.high for g in few])
        assert 0.9 <= covered <= 1.0
    assert all(g.low < g.exponent < g.high for g in found)


def test_fewer_than_three_lengths_have_no_exponent():
    assert growth(rounds(1.0, lengths=[256, 512])) is None and growth({}) is None
    assert growth({256: [1.0], 512: [], 1024: [2.0], 2048: []}) is None
    assert growth({256: [0.0], 512: [0.0], 1024: [0.0]}) is None
    assert growth(rounds(1.0, lengths=[256, 512, 1024])).lengths == (256, 512, 1024)


def test_few_rounds_have_no_interval():
    found = growth({256: [1.0], 512: [2.0], 1024: [4.0]})
    assert found.exponent == pytest.approx(1) and math.isnan(found.low)
    assert found.text == "length^1.00"
    assert growth(rounds(-1e-9, noise=0.0)).text == "length^0.00 [0.00, 0.00]"
