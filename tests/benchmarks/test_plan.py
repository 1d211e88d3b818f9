"""Plans: the grid that a suite stands for, and how tuning decides what is trained, training what is asked."""

import pytest
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.benchmarks.suite import SuiteError, parse_suite

from .grid import GOOD as GRID

TAUGHT = """training: {steps: 50, learning_rate: 4e-3, length: 64, bar: {accuracy: 0.9}}
    lengths: [64, 128]
    loads: [2, 4]
"""
GOOD = f"{GRID[: GRID.index('training:')]}{TAUGHT}"
SWEEP = """\
    sweep: {learning_rate: [1e-3, 2e-3, 4e-3], linear_attention.heads: [1, 2], seeds: [7], rungs: [0.2, 0.5]}
"""


def plan(text, results=()):
    return Planner(parse_suite(text, "s"), "cpu")({r.case: r for r in results})


def changed(old, new):
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def result(case, metrics, status="ok"):
    return ResultLine(
        case=case.id, layout=case.label, measure=case.measure, parameters={}, seed=case.seed, status=status, seconds=1,
        metrics=metrics if status == "ok" else None,
    )  # fmt: skip


def trained(case, passed=True):
    return result(case, {"training": {"bar": {"passed": passed}}})


def of(plan, measure, label=None):
    return [c for c in plan.cases if c.measure == measure and label in (None, c.label)]


def test_the_grid_is_layouts_times_measures_times_sizes_times_seeds():
    first = plan(GOOD)
    speed = [(c.label, c.parameters["modes"], c.parameters["lengths"], c.seed) for c in of(first, "speed")]
    assert speed == [("lin", [m], [n], 3) for n in (64, 128) for m in ("forward", "train")]
    taught = [(c.label, c.seed) for c in of(first, "training")]
    assert taught == [("soft", 0), ("soft", 1), ("lin", 0), ("lin", 1)]
    assert len({c.id for c in first.cases}) == len(first.cases) == 8 and not first.final
    assert {c.exclusive for c in of(first, "speed")} == {True} and {c.exclusive for c in of(first, "training")} == {
        False
    }
    lin = of(first, "training", "lin")[1]
    assert lin.layout_line == "linear_attention*2" and lin.model["seed"] == 1 and lin.model["d_model"] == 32
    assert lin.model["mixer_defaults"] == {"linear_attention": {"heads": 2}}
    assert lin.parameters["training"]["learning_rate"] == 0.004 and "measure" not in lin.parameters


def test_what_takes_time_is_never_taken_over_from_another_run():
    first = plan(GOOD)
    assert {c.reusable for c in of(first, "speed")} == {False} and {c.reusable for c in of(first, "training")} == {True}


def test_ids_depend_on_meaning_not_on_names_order_or_other_layouts():
    def ids(text, device="cpu"):
        return {c.id for c in Planner(parse_suite(text, "s"), device)({}).cases}

    same = GOOD.replace("name: mine", "name: other").replace("soft:", "full:").replace("*2", " * 2 ")
    same = same.replace(
        "    linear_attention: {heads: 2}", "    linear_attention: {heads: 2}\n    ttt_linear: {heads: 2}"
    )
    assert ids(same) == ids(GOOD)
    assert not ids(GOOD) & ids(GOOD, "cuda")
    assert not ids(GOOD) & ids(changed("d_model: 32", "d_model: 48"))


def test_entries_that_overlap_share_their_cases():
    more = "  - {measure: speed, modes: [train], lengths: [128, 256], layouts: [lin], seeds: [3]}\n"
    assert len(plan(GOOD + more).cases) == 9


def test_entries_that_teach_alike_share_the_training():
    entry = GOOD[GOOD.index("  - measure: recall") :]
    more = plan(GOOD + entry.replace("lengths: [64, 128]", "lengths: [256]").replace("[2, 4]", "[8]"))
    taught = of(more, "training")
    assert len(taught) == 4
    asked = of(
        plan(GOOD + entry.replace("[64, 128]", "[256]").replace("[2, 4]", "[8]"), map(trained, taught)), "recall"
    )
    assert [c.parameters["lengths"] for c in asked if (c.label, c.seed) == ("lin", 0)] == [[64], [128], [256]]


def test_only_a_model_that_was_taught_is_asked():
    taught = of(plan(GOOD), "training")
    results = [trained(taught[0]), trained(taught[1], passed=False), result(taught[2], None, "timeout")]
    then = plan(GOOD, results)
    asked = of(then, "recall")
    assert [(c.label, c.seed, c.parameters["lengths"]) for c in asked] == [("soft", 0, [64]), ("soft", 0, [128])]
    assert {c.parameters["trained"] for c in asked} == {taught[0].id}
    assert asked[0].parameters["training"] == taught[0].parameters["training"]
    assert not then.final
    assert plan(GOOD, [*results, trained(taught[3], passed=False)]).final


def test_without_a_bar_every_model_is_asked():
    text = changed(", bar: {accuracy: 0.9}", "")
    taught = of(plan(text), "training")
    assert len(of(plan(text, [result(c, {"training": {"bar": None}}) for c in taught]), "recall")) == 8


def test_a_sweep_halves_and_the_best_is_trained():
    text = GOOD + SWEEP
    first = plan(text)
    assert not of(first, "training")
    soft, lin = of(first, "tuning", "soft"), of(first, "tuning", "lin")
    assert [c.parameters["choice"] for c in soft] == [{"learning_rate": r} for r in (1e-3, 2e-3, 4e-3)]
    assert len(lin) == 6 and {c.model["mixer_defaults"]["linear_attention"]["heads"] for c in lin} == {1, 2}
    assert {c.seed for c in soft + lin} == {7}
    assert {(c.parameters["training"]["steps"], c.parameters["rung"]) for c in soft} == {(10, 0)}
    assert {c.parameters["training"]["bar"] for c in soft} == {None}

    results = [result(c, {"score": score}) for c, score in zip(soft, (0.3, 0.1, 0.2))]
    assert plan(text, results[:2]).cases == first.cases  # the rung is not over
    second = of(plan(text, results), "tuning", "soft")[3:]
    assert [c.parameters["choice"]["learning_rate"] for c in second] == [2e-3, 4e-3]
    assert {(c.parameters["training"]["steps"], c.parameters["rung"]) for c in second} == {(25, 1)}
    results += [result(second[0], {"score": 0.09}), result(second[1], {"score": 0.01})]
    taught = of(plan(text, results), "training")
    assert [(c.label, c.seed) for c in taught] == [("soft", 0), ("soft", 1)]
    assert taught[0].parameters["chosen"] == {"learning_rate": 4e-3}
    assert taught[0].parameters["training"]["learning_rate"] == 4e-3 and taught[0].parameters["training"]["steps"] == 50


def test_a_swept_option_of_a_mixer_reaches_the_model_that_is_trained_and_asked():
    text = GOOD + SWEEP.replace("[1e-3, 2e-3, 4e-3]", "[1e-3]").replace("[0.2, 0.5]", "[0.2]")
    lin = of(plan(text), "tuning", "lin")
    results = [result(c, {"score": float(c.model["mixer_defaults"]["linear_attention"]["heads"])}) for c in lin]
    taught = of(plan(text, results), "training", "lin")
    assert {c.model["mixer_defaults"]["linear_attention"]["heads"] for c in taught} == {1}
    asked = of(plan(text, [*results, *map(trained, taught)]), "recall", "lin")
    assert len(asked) == 4 and {c.model["mixer_defaults"]["linear_attention"]["heads"] for c in asked} == {1}


def test_trainings_that_fail_are_not_chosen():
    text = GOOD + SWEEP
    soft = of(plan(text), "tuning", "soft")
    results = [result(soft[0], None, "not_finite"), result(soft[1], {"score": 9.0}), result(soft[2], None, "timeout")]
    second = of(plan(text, results), "tuning", "soft")[3:]
    assert [c.parameters["choice"]["learning_rate"] for c in second] == [2e-3]
    every = plan(text, [result(c, None, "not_finite") for c in soft])
    assert not of(every, "training", "soft") and len(of(every, "tuning", "soft")) == 3


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{learnin_rate: [1]}", "training has no setting 'learnin_rate' to sweep"),
        ("{linear_attention.head: [1]}", "linear_attention has no setting 'head' to sweep"),
        ("{learning_rate: 1e-3}", "learning_rate must be a list of values"),
        ("{seeds: [1]}", "a sweep needs options"),
        ("{learning_rate: [1e-3], rungs: [0.5, 0.2]}", "rungs must be rising shares"),
        ("{learning_rate: [1e-3], keep: 1}", "less than 1"),
        ("{learning_rate: [-1]}", "greater than 0"),
        ("{learning_rate: [1e-3], seeds: [1, 0]}", "seeds of the sweep are those of the results"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(sweep, message):
    with pytest.raises(SuiteError, match=message):
        parse_suite(f"{GOOD}    sweep: {sweep}\n", "s")


def test_layouts_and_measures_are_selected_by_pattern():
    suite = parse_suite(GOOD, "s")
    chosen = Planner(suite.select(["speed", "so*"]), "cpu")({})
    assert {(c.label, c.measure) for c in chosen.cases} == {("lin", "speed"), ("soft", "training")}
    assert suite.select(None) is suite
    with pytest.raises(
        ValueError, match="--only 'x' matches nothing; layouts are lin, soft; measures are recall, speed"
    ):
        suite.select(["x"])
