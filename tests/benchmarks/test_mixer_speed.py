"""Mixer speed: a mixer by itself against attention of its width, held to bars where its time is linear."""

import pytest
import torch
from mixerzoo.benchmarks.measures.mixer_speed import MixerSpeed
from mixerzoo.models import ModelConfig
from pydantic import ValidationError

BAR = {"kind": "attention", "mode": "forward", "backend": "mixer", "over": "attention", "value": 1e9}


def measure(tmp_path, layout, **fields):
    config = ModelConfig(layout, d_model=32, n_layers=1, vocab_size=8)
    work = MixerSpeed(d_head=16, rounds=3, new_tokens=2, **{"lengths": (64,), **fields})
    return work.run(config, seed=0, device=torch.device("cpu"), folder=tmp_path, progress=lambda *_: None)


def test_a_mixer_and_attention_are_timed_in_turn(tmp_path):
    metrics = measure(tmp_path, "gla(heads=2)", lengths=(64, 128), bars=[BAR])
    rows = [(row["backend"], row["mode"], row["tokens"]) for row in metrics["rows"]]
    assert rows == [
        (b, m, n) for n in (64, 128) for b, m in [("mixer", "forward"), ("attention", "forward"), ("mixer", "decode")]
    ]
    assert all(row["rounds"] == 3 and 0 < row["q1"] <= row["median"] <= row["q3"] for row in metrics["rows"])
    ratios = [r for r in metrics["ratios"] if r["kind"] == "attention"]
    assert [(r["tokens"], r["bar"], r["met"]) for r in ratios] == [(64, 1e9, True), (128, 1e9, True)]
    medians = {row["tokens"]: row["median"] for row in metrics["rows"] if row["backend"] == "attention"}
    forward = next(row for row in metrics["rows"] if row["mode"] == "forward")
    assert ratios[0]["value"] == pytest.approx(forward["median"] / medians[64])
    assert metrics["state_bytes"] == {"64": 2 * 8 * 16 * 4, "128": 2 * 8 * 16 * 4} and metrics["mixer"] == "gla"


def test_a_bar_is_missed_where_it_cannot_be_met_and_left_out_where_time_is_not_linear(tmp_path):
    strict = {**BAR, "value": 1e-9}
    (ratio,) = measure(tmp_path, "linear_attention(heads=2)", modes=("forward",), bars=[strict])["ratios"]
    assert ratio["met"] is False
    (ratio,) = measure(tmp_path, "softmax_attention(heads=2)", modes=("forward",), bars=[strict])["ratios"]
    assert ratio["bar"] is None and ratio["met"] is None


def test_a_decoded_token_is_compared_over_contexts(tmp_path):
    metrics = measure(tmp_path, "retention(heads=2)", modes=("decode",), lengths=(16, 32))
    assert {r["kind"] for r in metrics["ratios"]} == {"growth", "flat"}
    assert all(row["units"] == 1 for row in metrics["rows"])


@pytest.mark.parametrize("change", [{"kind": "faster"}, {"mode": "decode"}, {"over": "mixer"}])
def test_other_bars_are_refused(change):
    with pytest.raises(ValidationError, match="a bar of mixer_speed has kind: attention"):
        MixerSpeed(bars=[{**BAR, **change}])


def test_training_and_prefill_are_compared_with_attention_too(tmp_path):
    metrics = measure(tmp_path, "gla(heads=2)", modes=("train", "prefill"), precision="bfloat16", batch=2)
    assert [(row["backend"], row["mode"]) for row in metrics["rows"]] == [
        ("mixer", "train"), ("attention", "train"), ("mixer", "prefill"), ("attention", "prefill")
    ]  # fmt: skip
    assert {(r["kind"], r["mode"]) for r in metrics["ratios"]} == {("attention", "train"), ("attention", "prefill")}
    assert all(row["units"] == 2 * 64 and row["peak_bytes"] > 0 for row in metrics["rows"])
