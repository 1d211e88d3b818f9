"""Numbers and files without measure are refused where they stand, before anything is built of them."""

import re
from pathlib import Path

import pytest
import yaml
from mixerzoo.benchmarks.runs import Run, RunError
from mixerzoo.benchmarks.suite import SuiteError, load_suite, parse_suite
from mixerzoo.benchmarks.train_file import load_train_file
from mixerzoo.benchmarks.yamlfile import YamlFile
from mixerzoo.mixers import check_option, limits
from mixerzoo.models import LayoutError, ModelConfig, count_parameters, parse_layout

from .grid import GOOD

HUGE = "99999999999999999999"
SUITE = """
name: all
seeds: [0]
time_limit_seconds: 60
memory_limit_bytes: 1000000
jobs: 2
model: {d_model: 32, n_layers: 2, d_ff: 96, vocab_size: 600, mixer_defaults: {softmax_attention: {heads: 2}}}
layouts: {soft: softmax_attention}
measures:
  - {measure: speed, lengths: [64], batch: 1, rounds: 3, budget_seconds: 0.1, new_tokens: 2, seeds: [1]}
  - {measure: overhead, lengths: [64], bars: [{kind: overhead, mode: train, backend: with, over: without, value: 2}]}
  - {measure: perplexity, length: 64, examples: 4, eval_batch: 2, chunk_size: 32, first_bucket: 16}
  - measure: recall
    task: {task: needle, n_needles: 2, asked: 1, n_keys: 64, n_values: 64, distractors: 1, overwrites: 0.5}
    lengths: [64]
    loads: [2]
    passes: [1]
    examples: 4
    recent: 8
    sweep: {learning_rate: [0.001], softmax_attention.heads: [2], seeds: [9], rungs: [0.5], keep: 0.5, examples: 2}
    training:
      steps: 10
      batch: 2
      length: 64
      learning_rate: 0.001
      weight_decay: 0.1
      clip: 1.0
      save_every: 5
      bar: {accuracy: 0.9, length: 64, load: 2, examples: 4, every: 5}
      curriculum: [{share: 1.0, mix: [{length: 64, load: 2, weight: 1.0}]}]
""".lstrip()
NUMBER = re.compile(r"(?<=[:\[ ])-?\d+(?:\.\d+)?(?=[,\]}\n])")
NUMBERS = list(NUMBER.finditer(SUITE))


def problems(text):
    with pytest.raises(SuiteError) as error:
        parse_suite(text, "s.yaml")
    return error.value.problems


def test_the_suite_of_these_tests_is_good():
    assert len(parse_suite(SUITE, "s.yaml").entries) == 4 and len(NUMBERS) > 40


@pytest.mark.parametrize("hostile", [HUGE, "-" + HUGE, "1e400", "-.inf", ".nan", "9" * 5000])
def test_no_setting_takes_a_number_without_measure(hostile):
    for number in NUMBERS:
        line = SUITE.count("\n", 0, number.start()) + 1
        found = problems(SUITE[: number.start()] + hostile + SUITE[number.end() :])
        assert [at for at, _ in found] == [line], number.group()


@pytest.mark.parametrize("hostile", ["2000000000000000", "-1", "true"])
def test_every_setting_has_limits_of_its_own(hostile):
    """A truth value is no number, and what 64 bits hold is still no number of layers; a seed may be large."""
    for number in NUMBERS:
        before = SUITE[: number.start()]
        if "000" in hostile and before.endswith(("seeds: [", "memory_limit_bytes: ")):
            continue
        found = problems(before + hostile + SUITE[number.end() :])
        assert before.count("\n") + 1 in [at for at, _ in found], (before[-30:], found)
        assert not any("Traceback" in message for _, message in found)


def test_the_message_says_the_limit():
    text = SUITE.replace("lengths: [64], batch", "lengths: [409999999999, 16384], batch")
    (problem,) = problems(text)
    assert problem == (
        9,
        "measures[0].lengths[0]: input should be less than or equal to 1073741824, got 409999999999",
    )
    (problem,) = problems(SUITE.replace("[64], batch", "[409999999999999999999996, 16384], batch"))
    assert problem == (9, "'409999999999999999999996' is beyond 64 bits; no setting takes such a number")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"fwpkm(chunk_size={HUGE})", f"chunk_size must be .*at most 1,073,741,824, got {HUGE}"),
        ("fwpkm(learning_rate=1e300)", "learning_rate must be .*at most 1,000,000,000,000,000"),
        ("softmax_attention*999999999", "has 999999999 layers, the model has 2"),
        ("softmax_attention(heads=True)", "heads must be a whole number"),
        ("softmax_attention@" + HUGE, "expected"),
        ("softmax_attention | fwpkm@999999999", "no layer 999999999"),
        (", ".join(["softmax_attention"] * 10_000), "longer than 20,000 characters"),
        (f"{'(' * 10_000}", "expected a name"),
        (f"fwpkm(chunk_size={'9' * 5000})", "this value cannot be read"),
    ],
)
def test_layout_lines(line, message):
    with pytest.raises(LayoutError, match=f"(?s){message}") as error:
        parse_layout(line).place(2)
    assert len(str(error.value)) < 1000
    (problem,) = problems(yaml.safe_dump({**yaml.safe_load(SUITE), "layouts": {"soft": line}}, sort_keys=False))
    assert problem[1].startswith("layouts.soft: ")


def test_options_from_python_are_held_to_the_same():
    with pytest.raises(ValueError, match=r"heads must be .*got a whole number of 66,439 bits"):
        check_option("softmax_attention", "heads", 10**20_000)
    for name in ("d_model", "n_layers", "d_ff", "vocab_size", "match_time", "seed"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            ModelConfig("softmax_attention", **{name: 2**64})


def test_a_model_that_fits_nowhere_is_refused_with_its_size():
    config = ModelConfig("softmax_attention", d_model=2**20, n_layers=100)
    with pytest.raises(ValueError, match=r"1,\d{3},\d{3},\d{3},\d{3},\d{3} parameters, [\d,]+ TB in float32"):
        count_parameters(config)
    with pytest.raises(ValueError, match="too large to be built"):
        count_parameters(ModelConfig("fwpkm(n_subkeys=1000000000)"))
    (problem,) = problems(SUITE.replace("d_model: 32, n_layers: 2, d_ff: 96", "d_model: 1048576, n_layers: 100"))
    assert problem[0] == 7 and "parameters" in problem[1]


def test_a_model_whose_flops_cannot_be_counted_here_is_refused_before_it_is_built():
    model = "d_model: 131072, n_layers: 20, match: flops, match_layout: softmax_attention"
    (problem,) = problems(SUITE.replace("d_model: 32, n_layers: 2, d_ff: 96", model))
    assert "GB of memory" in problem[1]


def test_a_suite_of_more_cases_than_any_run_gets_through():
    text = SUITE.replace("seeds: [0]", f"seeds: {list(range(100, 2100))}").replace(
        "[64], batch", f"{[64] * 2000}, batch"
    )
    (problem,) = problems(text.replace("new_tokens: 2, seeds: [1]", "new_tokens: 2"))
    assert problem == (9, "measures[0]: makes 16,000,000 cases of the suite; there may be 1,000,000 at most")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
HOSTILE = {
    "bomb": (BOMB, 5, "more than 30,000 keys, values and items"),
    "bomb of merges": (MERGED, 6, "more than 30,000 keys, values and items"),
    "itself": ("a: 1\nb: &b [*b]\n", 2, "an alias of what it stands in"),
    "merged into itself": ("a: &a {<<: *a}\n", 1, "an alias of what it stands in"),
    "brackets": ("a:\n " + "[" * 100_000, 2, "more than 50 levels deep"),
    "braces": ("a:\n " + "{" * 100_000, 2, "more than 50 levels deep"),
    "dashes": ("- " * 100_000, 1, "more than 50 levels deep"),
    "keys": ("? " * 50_000, 1, "more than 50 levels deep"),
    "many": ("a: [" + "1," * 100_000 + "]", 1, "more than 30,000 keys"),
    "long": ("a: " + "x" * 1_000_000, 1, "more than 1,000,000 bytes"),
    "no day": ("\na: 2026-02-31\n", 2, "'2026-02-31' cannot be read as 'timestamp'"),
    "no float": ("a: !!float many\n", 1, "'many' cannot be read as 'float'"),
    "an object": ("a: !!python/object/apply:os.system ['true']\n", 1, "could not determine a constructor"),
    "a control character": ("a: 1\nb: \x07\n", 2, "the character #x0007 is not allowed"),
    "an escape": ('a: "\\U99999999"\n', 1, "a number here is too large"),
    "a directive": (f"%YAML 1{'0' * 5000}.1\n---\na: 1\n", 1, "a number here is too large"),
}
READERS = (load_suite, load_train_file, YamlFile.read)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_its_line(tmp_path, name):
    text, line, message = HOSTILE[name]
    (tmp_path / "suite.yaml").write_text(text)
    for read in READERS if name == "bomb" else READERS[:1]:  # what walked the bomb would not come back
        with pytest.raises(SuiteError) as error:
            read(tmp_path / "suite.yaml")
        ((found, said),) = error.value.problems
        assert (found, message in said) == (line, True), error.value.problems


def test_the_suite_of_a_run_is_held_to_the_same(tmp_path):
    (tmp_path / "suite.yaml").write_text(BOMB)
    with pytest.raises(RunError, match="is damaged, it is not a suite"):
        Run(tmp_path).suite()


def test_a_file_of_other_bytes(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"name: a\ndescription: \xff\n")
    with pytest.raises(SuiteError, match=r"s\.yaml:2: this is no text in UTF-8"):
        load_suite(tmp_path / "s.yaml")


def test_ordinary_anchors_aliases_and_merges_work():
    text = GOOD.replace("layouts:", "layouts: &all", 1) if "layouts: &all" not in GOOD else GOOD
    assert parse_suite(text, "s").layouts == parse_suite(GOOD, "s").layouts
    file = YamlFile.parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n", "s")
    assert file.data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}


def test_the_page_names_every_limit():
    page = Path(__file__, "../../../docs/limits.md").resolve().read_text()
    for name, value in vars(limits).items():
        if name.isupper() and not name.startswith("_"):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"
            assert shown in page, name
