"""What an op costs above the library's function that it calls: a planted op, whose library is PyTorch."""

import time

import pytest
import torch
from mixerzoo.benchmarks.measures import library_overhead
from mixerzoo.benchmarks.measures.library_overhead import LibraryOverhead
from mixerzoo.mixers.ops.dispatch import Backend, Call, Op
from mixerzoo.mixers.ops.libraries import call_library, library_calls
from mixerzoo.mixers.ops.problems import Problem
from mixerzoo.models import ModelConfig

CALLS = []


def scaled_sum(values, *, weight):
    """The library."""
    return (values * weight).cumsum(1), None


class FakeOp(Op):
    """Backends of this very file."""

    def function(self, backend):
        return globals()[self.backends[backend].target]

    def load_problems(self):
        return globals()[self.problems]


def fast(values, weight):
    return call_library(scaled_sum, values.contiguous(), weight=weight)


def slow(values, weight):
    time.sleep(0.02)
    return call_library(scaled_sum, values, weight=weight)


def portable(values, weight):
    return scaled_sum(values, weight=weight)


def not_today(call):
    return "not today"


def problems(width):
    def inputs(batch, time, generator):
        draw = torch.randn(batch, time, width, generator=generator, dtype=torch.float64)
        return {"values": draw, "weight": torch.ones(width, dtype=torch.float64)}

    def run(inputs, state, backend):
        CALLS.append({name: t.dtype for name, t in inputs.items()})
        call = Call.of(inputs["values"], width=8, tokens=inputs["values"].shape[1])
        return OP.select(backend, inputs["values"].device, call)(**inputs)

    return [Problem("plain", inputs, run, fixed=("weight",), exact=("weight",))]


OP = FakeOp(
    "planted",
    Backend("fast", "fast"),
    Backend("slow", "slow"),
    Backend("portable", "portable"),
    Backend("choosy", "portable", refuses=not_today),
    Backend("reference", "fast", trust="never"),
    problems="problems",
)


class Card:
    ops = (OP,)


def measure(monkeypatch, tmp_path, card=Card, **fields):
    monkeypatch.setattr(library_overhead, "mixer_card", lambda name: card)
    config = ModelConfig("identity", d_model=8, n_layers=1, vocab_size=8)
    fields = {"lengths": (16,), "d_head": 8, "rounds": 3, "precision": "bfloat16", **fields}
    work = LibraryOverhead(**fields)
    return work.run(config, seed=0, device=torch.device("cpu"), folder=tmp_path, progress=lambda *_: None)


def test_every_backend_with_a_library_is_compared_with_the_direct_call(monkeypatch, tmp_path):
    CALLS.clear()
    metrics = measure(monkeypatch, tmp_path, most=1.5)
    names = [(row["backend"], row["mode"]) for row in metrics["rows"]]
    assert names == [
        (f"{backend} plain{suffix}", mode)
        for mode in ("forward", "train")
        for backend in ("fast", "slow")
        for suffix in ("", ", called directly")
    ]
    ratios = {(r["backend"], r["mode"]): r for r in metrics["ratios"]}
    assert len(ratios) == 4 and all(r["bar"] == 1.5 and r["kind"] == "library" for r in ratios.values())
    # what sleeps before the call is found out; with the call itself it would not be
    assert ratios["slow plain", "forward"]["met"] is False and ratios["slow plain", "train"]["met"] is False
    assert CALLS[0] == {"values": torch.bfloat16, "weight": torch.float32}


def test_without_a_library_there_is_nothing_to_compare(monkeypatch, tmp_path):
    class Portable:
        ops = (FakeOp("planted", Backend("portable", "portable"), problems="problems"),)

    with pytest.raises(ValueError, match="no backend of planted that can run on cpu calls a library's kernel"):
        measure(monkeypatch, tmp_path, Portable)


def test_what_a_backend_raises_is_not_passed_over(monkeypatch, tmp_path):
    def broken(values, weight):
        raise RuntimeError("a kernel failed")

    monkeypatch.setitem(globals(), "fast", broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        measure(monkeypatch, tmp_path)


def test_calls_are_noted_within_the_context_only():
    call_library(len, "a")
    with library_calls() as outer:
        call_library(len, "ab")
        with library_calls() as inner:
            assert call_library(int, "7", base=8) == 7
    assert [(c.function, c.args, c.kwargs) for c in outer] == [(len, ("ab",), {}), (int, ("7",), {"base": 8})]
    assert inner == outer[1:]
