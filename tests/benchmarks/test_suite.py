"""Suites: the grid they stand for, and every mistake named with its line."""

import pytest
import yaml
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.suite import SuiteError, bundled_suites, load_suite, parse_measure, parse_suite

from .grid import GOOD


def problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(SuiteError) as error:
        parse_suite(text, "s.yaml")
    for line, message in error.value.problems:
        assert f"s.yaml:{line}: {message}" in str(error.value)
    return error.value.problems


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


@pytest.mark.parametrize("name", bundled_suites())
def test_resolved_suite_is_the_same_suite(name):
    suite = load_suite(name)
    resolved = suite.resolved()
    again = parse_suite(yaml.safe_dump(resolved, sort_keys=False), "resolved")
    assert again.resolved() == resolved
    assert Planner(again, "cpu")({}) == Planner(suite, "cpu")({})
    assert resolved["name"] == name and resolved["description"]


def test_match_layout_may_be_a_label():
    text = changed("  d_model: 32", "  d_model: 32\n  match: params\n  match_layout: soft")
    suite = parse_suite(text, "s")
    assert Planner(suite, "cpu")({}).cases[0].model["match_layout"] == "softmax_attention"
    assert problems(text.replace("match_layout: soft", "d_ff: 96"))[0] == (
        2,
        "model: match and match_layout go together: give both or neither",
    )


def test_a_resolved_suite_keeps_the_options_of_a_mixer_that_is_only_matched():
    text = changed("  d_model: 32", "  d_model: 32\n  match: params\n  match_layout: gated_deltanet")
    text = text.replace("linear_attention: {heads: 2}", "gated_deltanet: {heads: 1, d_head: 48}")
    suite = parse_suite(text, "s")
    resolved = suite.resolved()
    assert resolved["model"]["mixer_defaults"]["gated_deltanet"] == {"heads": 1, "d_head": 48}
    again = parse_suite(yaml.safe_dump(resolved), "resolved")
    model = Planner(suite, "cpu")({}).cases[0].model
    assert Planner(again, "cpu")({}).cases[0].model == model
    assert model["mixer_defaults"]["gated_deltanet"] == {"heads": 1, "d_head": 48}


def test_a_layout_may_be_given_by_name():
    text = changed("linear_attention*2", "fa_interleave").replace("d_model: 32", "d_model: 32\n  n_layers: 4")
    assert parse_suite(text, "s").layouts["lin"] == "gated_deltanet*3, softmax_attention"
    twins = text.replace("soft: softmax_attention", "soft: fa_interleave")
    assert "is the same layout as 'soft'" in problems(twins)[0][1]
    matched = text.replace("d_model: 32", "d_model: 32\n  match: params\n  match_layout: fa")
    assert Planner(parse_suite(matched, "s"), "cpu")({}).cases[0].model["match_layout"] == "softmax_attention"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("name: mine", "name: a/b", 1, "name: string should match pattern"),
        ("name: mine", "nam: mine", 1, "nam: unknown setting; did you mean name?"),
        ("d_model: 32", "d_model: wide", 3, "model.d_model: input should be a valid integer"),
        (
            "{heads: 2}",
            "{head: 2}",
            5,
            "model.mixer_defaults.linear_attention.head: linear_attention has no such option",
        ),
        ("linear_attention: {", "linear_attn: {", 5, "unknown mixer 'linear_attn'; did you mean linear_attention"),
        ("linear_attention*2", "softmax_attention", 8, "layouts.lin: is the same layout as 'soft'; remove one"),
        ("linear_attention*2", "linear_attention*", 8, "layouts.lin: expected a whole number, found the end\n"),
        ("linear_attention*2", "linear_attentoin", 8, "did you mean linear_attention"),
        ("linear_attention*2", "linear_attention | fwpkm@7", 8, "there is no layer 7"),
        ("softmax_attention", "softmax_attention(heads=5)", 7, "layouts.soft: "),
        ("lin: linear", "soft: linear", 8, "'soft' stands here twice"),
        ("[0, 1]", "[0, 0]", 9, "seeds: the seeds must differ"),
        ("measure: speed", "measure: sped", 11, "measures[0].measure: unknown measure 'sped'; did you mean speed?"),
        (
            "    lengths: [64, 128]",
            "    lenghts: [64, 128]",
            13,
            "measures[0].lenghts: unknown setting; did you mean len",
        ),
        ("[forward, train]", "[forward, trian]", 12, "measures[0].modes[1]: input should be 'forward'"),
        ("[lin]", "[lim]", 14, "measures[0].layouts[0]: unknown layout 'lim'; did you mean lin?"),
        ("n_needles: 2", "n_needles: 9", 17, "n_keys=8 cannot give 9 needles distinct keys"),
        ("n_keys: 8", "n_keys: 999", 17, "measures[1].task: the task uses "),
        ("learning_rate: 4e-3", "learning_rate: -1", 18, "measures[1].training.learning_rate: input should be greater"),
        ("seeds: [0, 1]", "seeds: [0, 1", 10, ""),
    ],
)
def test_a_mistake_is_named_with_its_line(old, new, line, message):
    assert any(number == line and message in text for number, text in problems(changed(old, new)))


def test_all_mistakes_are_listed():
    text = changed("d_model: 32", "preset: nan0").replace("[lin]", "[lim]").replace("steps: 5", "steps: 0")
    assert [line for line, _ in problems(text)] == [3, 14, 18]


def test_no_suite_and_no_mapping_are_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a bundled suite nor a file; did you mean quick"):
        load_suite("quik")
    assert problems("- a\n")[0][1].startswith("a suite is a mapping")
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_suite(tmp_path / "mine.yaml").settings.name == "mine"


def test_parse_measure_refuses_unknown_names_and_parameters():
    assert parse_measure({"measure": "speed", "lengths": [8]}).lengths == (8,)
    with pytest.raises(ValueError, match="unknown measure 'spede'; did you mean speed"):
        parse_measure({"measure": "spede"})
    with pytest.raises(ValueError, match="sizes"):
        parse_measure({"measure": "speed", "sizes": [8]})


def test_bundled_suites_are_named_after_their_files():
    for name, text in bundled_suites().items():
        assert yaml.safe_load(text)["name"] == name


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("{heads: 2}", "{heads: 0}", 5, "heads must be a whole number of at least 1, got 0"),
        ("{heads: 2}", "{feature_map: relu}", 5, "feature_map must be one of elu, identity, taylor, got 'relu'"),
        ("linear_attention*2", "'linear_attention(heads=two)*2'", 8, "heads must be a whole number"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_named_with_its_line(old, new, line, message):
    ((found, text),) = problems(changed(old, new))
    assert found == line and message in text


def test_a_swept_value_that_an_option_cannot_have_is_refused():
    swept = changed("    lengths: [64]\n", "    lengths: [64]\n    sweep: {linear_attention.heads: [2, 0]}\n")
    (problem,) = problems(swept)
    assert "heads must be a whole number of at least 1, got 0" in problem[1]
