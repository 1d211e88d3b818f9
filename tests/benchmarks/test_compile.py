"""`torch.compile` as an option of measures and trainings: what says that it is compiled is, and else says why not."""

import json

import pytest
import torch
from mixerzoo.benchmarks.measures import measure_class
from mixerzoo.benchmarks.measures.memory import Memory
from mixerzoo.benchmarks.measures.mixer_speed import MixerSpeed
from mixerzoo.benchmarks.measures.overhead import Overhead
from mixerzoo.benchmarks.measures.speed import Speed
from mixerzoo.benchmarks.plan import Planner, everything
from mixerzoo.benchmarks.suite import SuiteError, parse_suite
from mixerzoo.benchmarks.training import TrainingSettings
from mixerzoo.benchmarks.worker import classify
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.models import ModelConfig, compile_totals, compiled, compiled_since, compiling

CPU = torch.device("cpu")
CONFIG = ModelConfig("softmax_attention(heads=2)", d_model=16, n_layers=1, vocab_size=16)
TEXT = """\
name: mine
layouts: {a: softmax_attention | fwpkm@1}
measures:
  - {measure: speed, modes: [forward, train], lengths: [64]}
  - {measure: memory, lengths: [64]}
  - {measure: overhead}
  - {measure: mixer_speed, modes: [forward]}
  - {measure: op_speed}
  - {measure: perplexity, training: {steps: 2, length: 64}, length: 64}
"""


@pytest.fixture
def quickly(monkeypatch):
    """Compiled without a compiler of C++ or of kernels; torch's settings are put back."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiling._try_out.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    compiling._try_out.cache_clear()
    torch._dynamo.reset()


def run(measure, tmp_path, config=CONFIG):
    where = {"seed": 0, "device": CPU, "folder": tmp_path, "progress": lambda fraction, text: None}
    with record_backends() as ran:
        metrics = measure.run(config, **where)
    assert metrics == json.loads(json.dumps(metrics, allow_nan=False))
    return metrics, ran


@pytest.mark.parametrize(
    ("given", "read"),
    [("off", False), (False, False), (True, "default"), ("default", "default"), ("max-autotune", "max-autotune")],
)
def test_yaml_of_now_and_of_before_is_understood(given, read):
    settings = TrainingSettings(compile=given)
    assert settings.compile == read and TrainingSettings(**settings.model_dump()) == settings
    text = f"  - {{measure: speed, modes: [train], lengths: [64], compile: {str(given).lower()}}}\n"
    (case,) = Planner(parse_suite(TEXT[: TEXT.index("  - ")] + text, "s"), "cpu")({}).cases
    assert case.parameters.get("compile", False) == read
    with pytest.raises(ValueError, match="compile"):
        Speed(modes=("train",), compile="fast")


def test_a_suite_says_it_for_all_that_can_be_compiled():
    def cases(text):
        return everything(Planner(parse_suite(text, "s"), "cpu"), {})

    before, after = cases(TEXT), cases(f"compile: default\n{TEXT}")
    assert not any("compile" in case.parameters for case in before)  # their ids are those of before there was a choice
    told = {case.measure: (case.parameters.get("training") or case.parameters).get("compile") for case in after}
    measured = dict.fromkeys(["speed", "memory", "overhead", "mixer_speed", "training", "perplexity"], "default")
    assert told == measured | {"op_speed": None}
    same = {case.measure for case in after if case.id in {c.id for c in before}}
    assert same == {"op_speed"}
    own = cases(f"compile: default\n{TEXT}".replace("[forward, train], lengths", "[train], compile: off, lengths"))
    assert {case.parameters.get("compile") for case in own if case.measure == "speed"} == {None}
    resolved = parse_suite(f"compile: default\n{TEXT}", "s").resolved()
    assert "compile" not in resolved and resolved["measures"][0]["compile"] == "default"


@pytest.mark.parametrize("measure", ["speed", "mixer_speed"])
def test_what_carries_a_state_is_not_said_to_be_compiled(measure):
    with pytest.raises(
        ValueError, match=r"compile: default is for the modes forward and train, not for .*decode; take"
    ):
        measure_class(measure)(compile="default")
    with pytest.raises(SuiteError, match="not for prefill, decode"):
        parse_suite(f"compile: default\n{TEXT}".replace("modes: [forward, train], ", ""), "s")


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_compile_time_is_apart_from_the_samples(quickly, tmp_path, mode):
    fields = {"modes": (mode,), "lengths": (16,), "rounds": 3, "budget_seconds": 0}
    metrics, ran = run(Speed(**fields, compile="default"), tmp_path)
    assert metrics["compile_seconds"] > 0 and metrics["graph_breaks"] >= 0
    assert metrics["first_call_seconds"] > 0 and metrics["rounds"] == 3
    assert ran["attention"]  # compiled code does not tell
    plain, _ = run(Speed(**fields), tmp_path)
    assert not {"compile_seconds", "graph_breaks"} & set(plain)


def test_every_measure_that_has_the_option_compiles(quickly, tmp_path):
    memory, _ = run(Memory(modes=("train",), lengths=(16,), compile="default"), tmp_path)
    assert memory["compile_seconds"] > 0 and memory["peak_bytes"] > 0 and memory["state_bytes"] > 0
    config = ModelConfig("identity | softmax_attention(heads=2)@0", d_model=16, n_layers=1, vocab_size=16)
    overhead, _ = run(Overhead(modes=("forward",), lengths=(8,), rounds=3, compile="default"), tmp_path, config)
    assert overhead["compile_seconds"] > 0 and overhead["rows"][0]["ran"]["attention"]
    mixer = MixerSpeed(modes=("forward",), lengths=(16,), d_head=8, rounds=1, compile="default")
    alone, ran = run(mixer, tmp_path)
    assert alone["compile_seconds"] > 0 and ran["attention"]


def test_compiled_calls_compute_the_same_and_only_the_first_ones_run_as_they_are(quickly):
    plain = []

    def call(x):
        if not torch.compiler.is_compiling():
            plain.append(len(x))
        return x.sin() + 1

    before, again = compile_totals(), compiled(call, "default", CPU)
    for gradients in (True, True, False, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(again(torch.arange(3) / 3), (torch.arange(3) / 3).sin() + 1)
    assert plain == [3, 3] and compiled_since(before)["compile_seconds"] > 0


def no_compiler(*_, **__):
    raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nand more")


def test_without_a_compiler_a_case_is_invalid_and_says_why(quickly, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    with pytest.raises(
        ValueError, match=r"cannot be used on cpu: RuntimeError: No working C\+\+ compiler.*'g\+\+'\)$"
    ) as e:
        run(Speed(modes=("train",), lengths=(16,), compile="max-autotune"), tmp_path)
    assert classify(e.value) == "invalid"


def test_a_compiler_that_is_switched_off_is_not_taken_for_one(quickly):
    off = torch._dynamo.config.patch(disable=True)
    with off, pytest.raises(ValueError, match="switched off here and would compile nothing; is TORCH_COMPILE_DISABLE"):
        compiled(torch.sin, "default", CPU)


def test_what_is_compiled_too_often_raises_rather_than_going_on_uncompiled(quickly):
    call = compiled(lambda x: x + 1, "default", CPU)
    assert torch._dynamo.config.recompile_limit >= 64
    with torch._dynamo.config.patch(recompile_limit=1):
        call(torch.zeros(2))
        with pytest.raises(Exception, match="limit"):
            call(torch.zeros(2, dtype=torch.float64))
