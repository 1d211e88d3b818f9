"""What a run will cost: every case that there can be is counted, and a layout that takes longer is said to."""

import dataclasses

import pytest
import torch
from mixerzoo.benchmarks.estimate import Estimate, Probe, estimate_run, probe
from mixerzoo.benchmarks.plan import Planner, everything
from mixerzoo.benchmarks.runs import Run
from mixerzoo.benchmarks.suite import parse_suite
from mixerzoo.models import LanguageModel

TEXT = """\
name: mine
model: {d_model: 16, n_layers: 1, mixer_defaults: {linear_attention: {heads: 2}, softmax_attention: {heads: 2}}}
layouts: {lin: linear_attention, soft: softmax_attention}
seeds: [0, 1]
measures:
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}
    training: {steps: 20, batch: 2, length: 64, bar: {examples: 4}}
    sweep: {learning_rate: [1e-3, 2e-3, 4e-3], rungs: [0.2, 0.5]}
    lengths: [64, 128]
    loads: [2, 4]
    examples: 2
  - {measure: speed, modes: [forward], lengths: [64], layouts: [lin], seeds: [0]}
"""
PROBE = Probe(train=1e-3, read=1e-4, read_slope=1e-6, train_bytes=5e6, state=1e3, state_slope=10.0)


def cases(text=TEXT):
    return everything(Planner(parse_suite(text, "s"), "cpu"), {})


def test_everything_is_every_case_that_there_can_be():
    found = [case.measure for case in cases()]
    # two layouts: 3 rates and then the better 2; two seeds, each asked at two lengths
    assert {m: found.count(m) for m in found} == {"tuning": 10, "training": 4, "recall": 8, "speed": 1}


def test_seconds_and_bytes_follow_from_what_was_tried_out():
    by_kind = {(case.measure, *case.parameters.get("lengths", [])): case for case in cases()}
    training = by_kind["training",]
    assert PROBE.case_seconds(training) == pytest.approx(20 * 128 * 1e-3 + 21 * 4 * 64 * (1e-4 + 64e-6))
    short = PROBE.case_seconds(by_kind["recall", 64])
    assert short == pytest.approx(2 * 2 * 64 * (1e-4 + 64e-6))  # two examples at two loads
    assert PROBE.case_seconds(by_kind["recall", 128]) > 2 * short
    assert PROBE.case_bytes(by_kind["recall", 128]) == 5e6 + 8 * (1e3 + 1280) and PROBE.case_bytes(training) == 5e6


def test_a_state_that_grows_is_told_from_one_that_has_a_bound():
    found = {case.label: probe(case, torch.device("cpu")) for case in cases() if case.measure == "training"}
    assert found["lin"].state_slope == found["lin"].read_slope == 0 and found["soft"].state_slope > 0
    assert all(p.train > 0 and p.read > 0 and p.train_bytes > 0 for p in found.values())


def test_an_estimate_is_of_what_is_left(tmp_path):
    planner = Planner(parse_suite(TEXT, "s").select(["lin"]), "cpu")
    estimate = estimate_run(planner, Run(tmp_path / "none"), "cpu", jobs=1)
    assert estimate.cases == 12 and estimate.seconds > 0 and estimate.bytes > 1e8
    assert "at most 12 cases, 1 at a time" in estimate.text()
    assert dataclasses.replace(estimate, cases=0).text() == "nothing is left to run"
    assert Estimate(61, 1.234e9, 3, 2, 0.4).text().startswith("estimate: 2 min, 1.2 GB (at most 3 cases, 2 at a time")


def test_what_is_tried_out_is_in_the_precision_of_the_case_and_not_compiled(monkeypatch):
    """Compiling would take longer than all the steps of the trial."""
    seen, read = [], LanguageModel.read

    def look(self, *tokens):
        seen.append(torch.is_autocast_enabled("cpu"))
        return read(self, *tokens)

    monkeypatch.setattr(LanguageModel, "read", look)
    monkeypatch.setattr("mixerzoo.benchmarks.training.loop.compiled", None)
    text = TEXT.replace("{steps: 20,", "{steps: 20, precision: bfloat16, compile: default,")
    case = next(case for case in cases(text) if case.measure == "training")
    assert case.parameters["training"]["compile"] == "default"
    assert probe(case, torch.device("cpu")).train > 0 and seen == [True, True]
