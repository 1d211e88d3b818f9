"""The decoder is timed against calling the model, on the same tokens, and held to its bar."""

import pytest
import torch
from mixerzoo.benchmarks.measures.decode_speed import DecodeSpeed
from mixerzoo.benchmarks.measures.speed import Speed
from mixerzoo.benchmarks.measures.workload import Workload
from mixerzoo.models import ModelConfig
from pydantic import ValidationError

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    "softmax_attention | fwpkm(n_subkeys=4, d_k=8, d_v=8, top_k=2, chunk_size=8)@0",
    d_model=16,
    n_layers=2,
    vocab_size=32,
)
BAR = {"kind": "decoder", "mode": "decode", "backend": "decoder", "over": "calls", "value": 1e9}


def silent(fraction, text):
    pass


def make_work(precision="float32", length=13):
    return Workload(CONFIG, batch=2, length=length, seed=0, device=CPU, precision=precision)


def test_both_ways_decode_the_same_tokens_and_are_compared(tmp_path):
    work = make_work()
    found = [decode(prepare())[0] for prepare, decode in (work.decoding(9), work.calling(9))]
    assert found[0].tolist() == found[1][:, 0].tolist()
    measure = DecodeSpeed(lengths=(13,), batch=2, rounds=3, new_tokens=4, bars=(BAR,))
    metrics = measure.run(CONFIG, seed=0, device=CPU, folder=tmp_path, progress=silent)
    decoder, calls = metrics["rows"]
    assert (decoder["backend"], calls["backend"], decoder["mode"]) == ("decoder", "calls", "decode")
    assert decoder["units"] == calls["units"] == 2 and calls["ran"]["fwpkm"] == ["compact"]
    (ratio,) = metrics["ratios"]
    assert ratio["value"] == pytest.approx(decoder["median"] / calls["median"])
    assert (ratio["kind"], ratio["bar"], ratio["met"]) == ("decoder", 1e9, True)
    assert metrics["how"]["layers.0.memory"] == "recorded, called at edges"


def test_a_bar_is_about_the_decoder():
    with pytest.raises(ValidationError, match="a bar of decode_speed has kind: decoder"):
        DecodeSpeed(bars=({**BAR, "over": "without"},))


def test_decoding_enters_autocast_for_no_token(tmp_path, monkeypatch):
    work = make_work("bfloat16", length=9)  # no chunk ends with the tokens after it
    prepare, decode = work.decoding(2)
    token = prepare()
    entered = []
    enter = torch.autocast.__enter__
    monkeypatch.setattr(torch.autocast, "__enter__", lambda self: entered.append(self) or enter(self))
    decode(token)
    assert not any(context._enabled for context in entered)
    Speed(modes=("decode",), lengths=(13,), rounds=3, new_tokens=1, budget_seconds=0, precision="bfloat16").run(
        CONFIG, seed=0, device=CPU, folder=tmp_path, progress=silent
    )
    assert any(context._enabled for context in entered)  # the prefill, by the same count
