"""Suites and training files: the bundled ones with places changed, and the text of them changed."""

from __future__ import annotations

import random

import yaml
from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.suite import bundled_suites, parse_suite
from mixerzoo.benchmarks.train_file import load_train_file

from .fuzzing import TEXTS, YAML_VALUES, ends_well, fuzz, mutated, mutated_text

SMALL = ("smoke", "fwpkm-speed", "quick", "domain-shift", "ruler-mini", "state-tracking", "mad")  # quick to read
SUITES = {name: text for name, text in bundled_suites().items() if name in SMALL}
DATA = {name: yaml.safe_load(text) for name, text in SUITES.items()}
PIECES = [
    *TEXTS,
    "&a ",
    "*a",
    "<<: *a\n",
    "- ",
    ": ",
    "\n",
    "\t",
    "[" * 60,
    "{" * 60,
    "!!set",
    "!!python/name:os.system ",
    "%",
    "|",
    ">",
]
TRAIN = yaml.safe_load("""
model: {layout: softmax_attention, d_model: 32}
task: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}
training: {steps: 5, batch: 2, length: 64, bar: {accuracy: 0.9}, curriculum: [{share: 1.0, mix: [{length: 64}]}]}
seed: 1
""")


def read(text: str) -> None:
    """Read it; what is read can be planned."""
    suite = ends_well(lambda: parse_suite(text, "s.yaml"))
    if suite is not None:
        ends_well(lambda: Planner(suite, "cpu")({}))
        again = parse_suite(yaml.safe_dump(suite.resolved(), sort_keys=False, allow_unicode=True), "resolved")
        assert again.resolved() == suite.resolved()


@fuzz(120)
@given(st.randoms(use_true_random=False))
def test_a_suite_with_changed_places_is_read_or_refused(rng: random.Random) -> None:
    data = mutated(DATA[rng.choice(sorted(DATA))], rng, YAML_VALUES)
    read(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


@fuzz(60)
@given(st.randoms(use_true_random=False))
def test_a_suite_with_changed_text_is_read_or_refused(rng: random.Random) -> None:
    read(mutated_text(SUITES[rng.choice(sorted(SUITES))], rng, PIECES))


@fuzz(40)
@given(st.randoms(use_true_random=False))
def test_a_training_file_is_read_or_refused(tmp_path_factory, rng: random.Random) -> None:
    path = tmp_path_factory.mktemp("train") / "train.yaml"
    path.write_text(yaml.safe_dump(mutated(TRAIN, rng, YAML_VALUES), sort_keys=False), errors="replace")
    ends_well(lambda: load_train_file(path))
