"""Every interval and every verdict against simulated truth; `docs/statistics.md` has the same numbers in a table."""

import math
from typing import Any

import numpy as np
import pytest
from mixerzoo.reports import intervals
from mixerzoo.reports.inference import (
    ALPHA,
    Answers,
    Comparison,
    Estimate,
    Solved,
    Tally,
    _ranking,
    above_chance,
    best_of,
    compare_recall,
    compare_seeds,
    fastest,
    holm,
    ratio_of_medians,
    recall_interval,
    seed_mean,
    solved,
)
from mixerzoo.reports.intervals import Floats, accuracy_ends, chance_tail, difference_ends, spread
from scipy.special import expit, roots_hermitenorm

SEQUENCES, QUESTIONS = 16, 64
ERROR = 0.004  # standard error of a coverage of 97 % in 2,000 runs


def logit_centre(accuracy: float, deviation: float) -> float:
    """The mean of normal logits with that standard deviation whose accuracies have the mean `accuracy`."""
    points, weights = roots_hermitenorm(64)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        below = weights @ expit(middle + deviation * points) / weights.sum() < accuracy
        low, high = (middle, high) if below else (low, middle)
    return low


def simulate(
    rng: np.random.Generator, runs: int, seeds: int, accuracies: tuple[float, ...], between: float, within: float
) -> list[Floats]:
    """Right answers of every layout, [runs, seeds, sequences] each, with seeds and sequences partly in common.

    between, within: standard deviation of the logits between seeds and between the sequences of a seed.
    """
    example = within * rng.standard_normal((runs, seeds, SEQUENCES))
    order = rng.standard_normal((runs, seeds, 1))
    right = []
    for accuracy in accuracies:
        own = (order + rng.standard_normal((runs, seeds, 1))) / math.sqrt(2)
        logits = logit_centre(accuracy, math.hypot(between, within)) + between * own + example
        right.append(rng.binomial(QUESTIONS, expit(logits)).astype(float))
    return right


def questions(right: Floats) -> Floats:
    return np.full_like(right, QUESTIONS)


def covered(ends: tuple[Floats, Floats], truth: Floats | float) -> float:
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


def answers(*accuracies: float, seed: int = 0) -> Answers:
    """One seed for every accuracy."""
    rng = np.random.default_rng(seed)
    return tallied([[(rng.random(QUESTIONS) < p).sum() for _ in range(SEQUENCES)] for p in accuracies])


def tallied(right: Any) -> Answers:
    """Right answers of every seed and sequence."""
    return Answers({s: Tally(np.array(row), np.full(len(row), QUESTIONS)) for s, row in enumerate(right)})


# (accuracy, spread of the logits between seeds, and between sequences). 0.08 with 1.1: seeds of 13 % and 3 %.
CELLS = [(0.08, 0, 0), (0.08, 0.3, 0.5), (0.08, 1.1, 0), (0.5, 0, 0.5), (0.5, 1.1, 0), (0.98, 0, 0.5), (0.98, 0.3, 0)]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("accuracy", "between", "within"), CELLS)
def test_accuracy_intervals_cover_the_truth(seeds: int, accuracy: float, between: float, within: float) -> None:
    (right,) = simulate(np.random.default_rng(1), 2000, seeds, (accuracy,), between, within)
    most = 0.98 if seeds == 3 and accuracy != 0.5 else 0.97 + ERROR  # near 0 and 1 three seeds are held to be careful
    assert 0.93 <= covered(accuracy_ends(right, questions(right)), accuracy) <= most


@pytest.mark.parametrize(
    ("accuracy", "between", "least"), [(0.998, 0, 0.93), (0.002, 0.3, 0.93), (0.98, 1.1, 0.93), (0.998, 1.1, 0.91)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_accuracy_intervals_at_the_edges_cover_at_least(
    seeds: int, accuracy: float, between: float, least: float
) -> None:
    (right,) = simulate(np.random.default_rng(2), 1500, seeds, (accuracy,), between, 0.5)
    assert covered(accuracy_ends(right, questions(right)), accuracy) >= least


@pytest.mark.parametrize("accuracy", [0.08, 0.5, 0.98])
@pytest.mark.parametrize(("seeds", "within"), [(1, 0.0), (1, 0.5), (2, 0.5)])
def test_intervals_of_one_or_two_seeds_cover_these_models(seeds: int, within: float, accuracy: float) -> None:
    rng = np.random.default_rng(3)
    own = logit_centre(accuracy, 1) + rng.standard_normal((4000, seeds, 1))
    points, weights = roots_hermitenorm(64)
    truth = (expit(own + within * points) @ weights / weights.sum()).mean(-1)
    right = rng.binomial(QUESTIONS, expit(own + within * rng.standard_normal((4000, seeds, SEQUENCES)))).astype(float)
    assert 0.925 <= covered(accuracy_ends(right, questions(right)), truth) <= 0.97


PAIRS = [(0.5, 0.5, 0, 0.5), (0.98, 0.98, 0.3, 0), (0.98, 0.9, 0.3, 0.5), (0.98, 0.5, 0.3, 0), (0.5, 0.08, 1.1, 0.5)]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("first", "second", "between", "within"), PAIRS)
def test_difference_intervals_cover_the_truth(
    seeds: int, first: float, second: float, between: float, within: float
) -> None:
    a, b = simulate(np.random.default_rng(4), 1500, seeds, (first, second), between, within)
    assert 0.93 <= covered(difference_ends(a, b, questions(a)), first - second) <= 0.97


def test_skewed_seeds_move_the_far_end_of_a_difference_out() -> None:
    a, b = simulate(np.random.default_rng(5), 1500, 3, (0.998, 0.9), 1.1, 0)
    found = spread(a - b, questions(a))
    straight = covered((found.mean - found.error(), found.mean + found.error()), 0.098)
    assert straight < 0.90
    assert covered(difference_ends(a, b, questions(a)), 0.098) >= 0.93


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("accuracy", [0.002, 0.08, 0.5, 0.98])
@pytest.mark.parametrize("between", [0, 0.3, 1.1])
def test_equal_layouts_are_seldom_called_apart(seeds: int, accuracy: float, between: float) -> None:
    a, b = simulate(np.random.default_rng(6), 6000, seeds, (accuracy, accuracy), between, 0.3)
    found = spread(a - b, questions(a))
    assert (2 * found.tail(np.abs(found.mean)) <= ALPHA).mean() <= 0.056  # 5 % and two errors of 6,000 runs


def test_a_clear_difference_is_found() -> None:
    a, b = simulate(np.random.default_rng(7), 4000, 3, (0.98, 0.54), 0.3, 0.3)
    c, d = simulate(np.random.default_rng(7), 4000, 5, (0.9, 0.8), 0.3, 0.3)
    power = [
        float((2 * f.tail(f.mean) <= ALPHA).mean()) for f in (spread(a - b, questions(a)), spread(c - d, questions(c)))
    ]
    assert power[0] >= 0.98
    assert power[1] >= 0.80


def ranked(layouts: list[Floats]) -> tuple[float, float]:
    """Parts of the runs in which a layout was called the single best, and in which one of the best was called worse."""
    runs, names = len(layouts[0]), range(len(layouts))
    pairs = {(i, j): spread(layouts[i] - layouts[j], questions(layouts[i])) for i in names for j in names if i != j}
    p_values = {pair: np.minimum(1, 2 * found.tail(np.abs(found.mean))) for pair, found in pairs.items()}
    means = [right.mean((-1, -2)) for right in layouts]
    best = [i for i in names if means[i].mean() >= max(m.mean() for m in means) - 0.02]
    single = apart = 0
    for run in range(runs):

        def compare(a: str, b: str, run: int = run) -> Comparison:
            gap, p = float(pairs[int(a), int(b)].mean[run]), float(p_values[int(a), int(b)][run])
            verdict = "cannot tell" if p > ALPHA else "better" if gap > 0 else "worse"
            return Comparison(gap, math.nan, math.nan, verdict, p, 3, "new seeds")

        found = _ranking({str(i): float(means[i][run]) for i in names}, compare)
        single += found.best is not None
        apart += any(str(i) not in (found.leader, *found.tied) for i in best)
    return single / runs, apart / runs


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("accuracies", "between"), [((0.5,) * 5, 0.3), ((0.98,) * 5, 0), ((0.9, 0.9, 0.5, 0.3, 0.1), 0), ((0.08,) * 5, 1.1)]
)
def test_no_single_best_among_equal_layouts(seeds: int, accuracies: tuple[float, ...], between: float) -> None:
    layouts = simulate(np.random.default_rng(8), 1500, seeds, accuracies, between, 0.3)
    single, apart = ranked(layouts)
    assert single <= 0.05
    assert apart <= 0.05


def test_a_clear_best_is_found_among_five() -> None:
    layouts = simulate(np.random.default_rng(9), 500, 3, (0.98, 0.55, 0.5, 0.3, 0.1), 0.3, 0.3)
    single, _ = ranked(layouts)
    assert single >= 0.90


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("chance", "between"), [(1 / 512, 0), (0.02, 0.3), (0.1, 0), (0.5, 0), (0.5, 1.1)])
def test_five_layouts_at_chance_are_seldom_called_above_it(seeds: int, chance: float, between: float) -> None:
    layouts = simulate(np.random.default_rng(10), 4000, seeds, (chance,) * 5, between, 0)
    least = np.min([chance_tail(right, questions(right), chance) for right in layouts], axis=0)
    assert (least * 5 <= ALPHA).mean() <= 0.055


def test_recall_far_above_chance_is_found_among_five() -> None:
    for seeds, accuracy in ((3, 0.9), (5, 0.4)):
        (right,) = simulate(np.random.default_rng(10), 4000, seeds, (accuracy,), 0.3, 0.3)
        assert (chance_tail(right, questions(right), 0.1) * 5 <= ALPHA).mean() >= 0.95


@pytest.mark.parametrize(("rounds", "skewed"), [(5, False), (7, False), (10, False), (10, True), (20, True)])
def test_ratios_of_medians_cover_the_truth(rounds: int, skewed: bool) -> None:
    rng = np.random.default_rng(11)
    inside = []
    for _ in range(800):
        noise = rng.exponential(0.05, (2, rounds)) if skewed else 0.05 * rng.standard_normal((2, rounds))
        a, b = np.exp(noise) * [[3.0], [2.0]]
        found = ratio_of_medians(a.tolist(), b.tolist())
        inside.append(found.low <= 1.5 <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize(("rounds", "skewed"), [(5, False), (15, False), (15, True)])
def test_rounds_in_turn_are_compared_between_runs_whose_machine_drifts(rounds: int, skewed: bool) -> None:
    rng = np.random.default_rng(14)

    def by_control(ratio: float) -> list[float]:
        """Rounds by those beside them, of a run with a drift of its own."""
        drift = 0.2 * rng.standard_normal() + 0.1 * rng.standard_normal(rounds)
        noise = rng.exponential(0.05, (2, rounds)) if skewed else 0.05 * rng.standard_normal((2, rounds))
        ours, beside = np.exp(drift + noise)
        return (ratio * ours / beside).tolist()

    changed = [ratio_of_medians(by_control(1.5), by_control(1.0), paired=False) for _ in range(400)]
    equal = [ratio_of_medians(by_control(1.0), by_control(1.0), paired=False) for _ in range(400)]
    assert np.mean([found.low <= 1.5 <= found.high for found in changed]) >= 0.95
    assert np.mean([found.verdict != "cannot tell" for found in equal]) <= 0.05


def test_equal_speeds_have_no_fastest() -> None:
    rng = np.random.default_rng(12)
    claims, apart = 0, 0
    for _ in range(150):
        drift = 0.1 * rng.standard_normal(7)
        found = fastest({str(k): np.exp(drift + 0.05 * rng.standard_normal(7)).tolist() for k in range(4)})
        claims += found.best is not None
        apart += len(found.tied) < 3
    assert claims <= 0.05 * 150
    assert apart <= 0.05 * 150


def test_speed_verdicts() -> None:
    slow, fast = [2.0, 2.1, 2.2, 2.0, 2.05], [1.0, 1.1, 1.05, 1.0, 1.02]
    found = ratio_of_medians(fast, slow)
    assert found.difference == pytest.approx(1.02 / 2.05)
    assert (found.verdict, found.kind) == ("better", "rounds")
    assert ratio_of_medians(slow, fast).verdict == "worse"
    assert ratio_of_medians(slow[:4], fast[:4]).verdict == "cannot tell"
    assert math.isnan(ratio_of_medians(slow[:4], fast[:4]).low)
    assert fastest({"slow": slow, "fast": fast}).best == "fast"
    assert ratio_of_medians(slow, [*fast, 1.0], paired=False).verdict == "worse"
    with pytest.raises(ValueError, match="got 5 and 4"):
        ratio_of_medians(slow, fast[:4])
    with pytest.raises(ValueError, match="positive"):
        ratio_of_medians([0.0, 1.0], [1.0, 1.0])


def test_answers_of_three_seeds_speak_of_new_seeds_and_of_fewer_only_of_these_models() -> None:
    few, many = recall_interval(answers(0.9, 0.8)), recall_interval(answers(0.9, 0.8, 0.85))
    assert (few.kind, few.seeds) == ("these models", 2)
    assert (many.kind, many.seeds) == ("new seeds", 3)
    assert many.low < few.low < few.high < many.high
    apart = compare_recall(answers(0.9, 0.9), answers(0.1, 0.1))
    assert (apart.verdict, apart.separable, apart.kind) == ("cannot tell", True, "these models")
    same = compare_recall(answers(0.9, 0.9), answers(0.9, 0.9))
    assert (same.difference, same.verdict, same.separable, same.p_value) == (0, "cannot tell", False, 1)
    assert best_of({"a": answers(0.9, 0.9), "b": answers(0.1, 0.1)}).tied == ("b",)
    assert above_chance({"a": answers(0.9, 0.9)}, 0.1) == {"a": False}


def test_only_right_answers_leave_room_for_wrong_ones() -> None:
    found = recall_interval(answers(1.0, 1.0, 1.0))
    assert found.value == found.high == 1
    assert 0.99 < found.low < 1
    one_seed = recall_interval(answers(0.0))
    assert one_seed.value == one_seed.low == 0
    assert 0 < one_seed.high < 0.01


def test_public_functions_agree_with_the_arrays_that_are_simulated() -> None:
    a, b = simulate(np.random.default_rng(13), 1, 3, (0.9, 0.5), 0.3, 0.3)
    first, second = (tallied(right[0]) for right in (a, b))
    low, high = accuracy_ends(a, questions(a))
    found = recall_interval(first)
    assert found == Estimate(
        pytest.approx(a.mean() / QUESTIONS), pytest.approx(low[0]), pytest.approx(high[0]), 3, "new seeds"
    )
    low, high = difference_ends(a, b, questions(a))
    compared = compare_recall(first, second)
    assert (compared.low, compared.high) == pytest.approx((low[0], high[0]))
    assert compared == compare_recall(first, second)
    assert (compared.verdict, compare_recall(second, first).verdict) == ("better", "worse")
    assert best_of({"b": second, "a": first}).best == "a"
    assert above_chance({"a": first, "b": second}, 0.5) == {"a": True, "b": False}


def test_sequences_without_questions_count_for_nothing() -> None:
    right, total = np.array([[3.0, 5.0, 4.0]]), np.array([[8.0, 8.0, 8.0]])
    padded = accuracy_ends(np.pad(right, [(0, 0), (0, 2)]), np.pad(total, [(0, 0), (0, 2)]))
    assert np.allclose(padded, accuracy_ends(right, total))


def test_answers_are_read_from_strings_and_compared_only_on_the_same_questions() -> None:
    hits = {4: ["01r", "11w"], 2: ["ww", ""]}
    assert Answers.from_strings(hits).seeds == [4]
    recent = Answers.from_strings(hits, recent=True)
    assert recent.seeds == [2, 4]
    assert [c.tolist() for c in recent.counts([4])] == [[[1, 0]], [[1, 1]]]
    with pytest.raises(ValueError, match="'x'"):
        Answers.from_strings({0: ["0x"]})
    with pytest.raises(ValueError, match="same examples"):
        compare_recall(Answers.from_strings({0: ["01"]}), Answers.from_strings({0: ["011"]}))
    apart = compare_recall(answers(0.5), Answers.from_strings({7: ["01"]}))
    assert (apart.verdict, apart.seeds, apart.kind) == ("cannot tell", 0, "nothing")
    assert recall_interval(Answers({})).kind == "nothing"
    with pytest.raises(ValueError, match="a ranking needs"):
        best_of({"a": Answers({})})


def test_numbers_per_seed() -> None:
    found = seed_mean([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)  # t of 2 degrees: 4.3027
    assert seed_mean([1.0, 2.0]).kind == seed_mean([2.0, 2.0, 2.0]).kind == "nothing"
    a, b = {0: 1.0, 1: 2.0, 2: 3.0, 9: 0.0}, {0: 2.0, 1: 3.1, 2: 4.05}
    assert compare_seeds(a, b).verdict == "better"
    assert compare_seeds(a, b, lower_is_better=False).verdict == "worse"
    assert compare_seeds({0: 1.0}, b).verdict == "cannot tell"
    assert compare_seeds(a, {s: v + 1 for s, v in a.items()}).verdict == "cannot tell"


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_number_per_seed_is_covered(seeds):
    rng = np.random.default_rng(seeds)
    truth, other = 2.0, 2.3
    alone = differences = apart = 0
    runs = 3000
    for _ in range(runs):
        shared = rng.normal(0, 0.3, seeds)  # what the order of the data does to both layouts
        a, b = (mean + shared + rng.normal(0, 0.1, seeds) for mean in (truth, other))
        found = seed_mean(a)
        alone += found.low <= truth <= found.high
        pair = compare_seeds(dict(enumerate(a)), dict(enumerate(b)))
        differences += pair.low <= truth - other <= pair.high
        null = compare_seeds(dict(enumerate(a)), dict(enumerate(b - other + truth)))
        apart += null.verdict != "cannot tell"
    assert 0.94 <= alone / runs <= 0.96 and 0.94 <= differences / runs <= 0.96
    assert 0.04 <= apart / runs <= 0.06


def test_tokens_to_solve_with_seeds_that_did_not() -> None:
    assert solved([100, None, 300], 400) == Solved(300.0, 2, 3, 400)
    assert solved([100, 200, 300, None], 400).median == 200
    unsolved = solved([None, None, 50], 400)
    assert math.isnan(unsolved.median)
    assert (unsolved.solved, unsolved.seeds) == (1, 3)
    assert math.isnan(solved([None], 400).median)


def test_holm_gives_the_published_adjustment() -> None:
    # Wright (1992), Biometrics 48, 1005-1013: p times the number of those not yet rejected, never falling
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_draws_fit_their_laws() -> None:
    normal, chi2 = intervals._draws(2)
    assert (normal.mean(), normal.std()) == pytest.approx((0, 1), abs=0.01)
    assert chi2.mean() == pytest.approx(2, abs=0.02)
