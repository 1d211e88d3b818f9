"""The meter itself: what takes a known time and holds known bytes must be reported so."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from mixerzoo.benchmarks.measures import meter
from mixerzoo.benchmarks.measures.memory import Memory
from mixerzoo.benchmarks.measures.meter import measure_memory, quartiles, time_rounds
from mixerzoo.benchmarks.measures.speed import Speed
from mixerzoo.mixers import Mixer, MixerCard, MixerState, option, registry
from mixerzoo.mixers.stepping import CannotStep, Stepper
from mixerzoo.models import ModelConfig
from torch import Tensor, nn

CPU = torch.device("cpu")
SECONDS = 0.02
TEMPORARY_BYTES, STATE_BYTES, KEPT_BYTES = 64 * 2**20, 3 * 2**20, 1000 * 4
LENGTH = 100


@dataclass(frozen=True, eq=False)
class KnownState(MixerState):
    held: Tensor


class Known(Mixer):
    """Sleeps, allocates for a moment, keeps some bytes for each token for the backward pass, holds a known state."""

    card = MixerCard("known", "test", "costs that are known", "none", None, 2026, "constant")

    seconds: float = option("that it sleeps", default=0.0, least=0)
    temporary_bytes: int = option("that it allocates for a moment", default=0, least=0)

    def build(self) -> None:
        self.scale = nn.Parameter(torch.ones(1))

    def mix(self, x: Tensor, state: KnownState | None, return_state: bool) -> tuple[Tensor, KnownState]:
        time.sleep(self.seconds)
        torch.empty(self.temporary_bytes, dtype=torch.uint8)
        kept = torch.ones(*x.shape[:2], KEPT_BYTES // 4)
        y = x * (self.scale * kept).mean()
        return y, self.next_state(KnownState, x, state, held=torch.zeros(x.shape[0], STATE_BYTES // 4))

    def stepper(self, max_length: int, static: bool) -> Stepper:
        raise CannotStep("a recorded step would not sleep")


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(registry._mixers, "known", Known)

    def config(**options):
        return ModelConfig("known", d_model=16, n_layers=1, vocab_size=16, mixer_defaults={"known": options})

    return config


def run(measure, config, tmp_path):
    said = []
    metrics = measure.run(config, seed=0, device=CPU, folder=tmp_path, progress=lambda *args: said.append(args))
    assert said and all(0 <= fraction <= 1 for fraction, _ in said)
    return metrics


@pytest.mark.parametrize("mode", ["forward", "train", "prefill", "decode"])
def test_known_seconds_are_reported(known, tmp_path, mode):
    speed = Speed(modes=(mode,), lengths=(LENGTH,), rounds=3, budget_seconds=0, new_tokens=2, batch=2)
    metrics = run(speed, known(seconds=SECONDS), tmp_path)
    assert metrics["rounds"] == len(metrics["samples"]) == 3 and metrics["first_call_seconds"] >= SECONDS
    seconds, rate = metrics["seconds"], metrics["tokens_per_second"]
    assert SECONDS <= min(metrics["samples"]) <= seconds["q1"] <= seconds["median"] <= seconds["q3"]
    assert seconds["median"] < 20 * SECONDS  # not two tokens' time, nor a sum over rounds and warm-up of a busy machine
    tokens = 2 * (1 if mode == "decode" else LENGTH)
    assert rate["median"] == pytest.approx(tokens / seconds["median"])
    assert rate["q1"] <= rate["median"] <= rate["q3"] <= tokens / SECONDS


def test_known_bytes_are_reported_in_the_forward_pass(known, tmp_path):
    memory = Memory(modes=("forward",), lengths=(LENGTH,))
    small, large = (run(memory, known(temporary_bytes=n), tmp_path) for n in (0, TEMPORARY_BYTES))
    assert TEMPORARY_BYTES <= large["peak_bytes"] < TEMPORARY_BYTES + small["peak_bytes"]
    assert large["activation_bytes_per_token"] == large["peak_bytes"] / LENGTH
    assert large["state_bytes"] == STATE_BYTES
    assert large["model_bytes"] == 4 * large["parameters"] and large["optimizer_bytes"] == 0
    assert large["method"] and large["flops"] > 2 * LENGTH * 16 * 16


def test_known_bytes_are_reported_in_a_training_step(known, tmp_path):
    memory = Memory(modes=("train",), lengths=(LENGTH,), batch=2)
    metrics = run(memory, known(temporary_bytes=TEMPORARY_BYTES), tmp_path)
    assert TEMPORARY_BYTES < metrics["peak_bytes"] < 1.1 * TEMPORARY_BYTES
    # the temporary bytes are gone by the end of the forward pass; what autograd keeps is there
    assert KEPT_BYTES < metrics["activation_bytes_per_token"] < 3 * KEPT_BYTES
    assert metrics["state_bytes"] == 2 * STATE_BYTES
    # two moments, and a step count for each parameter
    assert 2 * metrics["model_bytes"] < metrics["optimizer_bytes"] < 2.1 * metrics["model_bytes"]


def test_memory_meter_follows_every_allocation():
    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(5000, dtype=torch.uint8)
        del first
        third = torch.empty(3000, dtype=torch.uint8)
        del second
        return third

    for _ in range(2):
        reading = measure_memory(work, CPU)
        assert (reading.peak_bytes, reading.held_bytes) == (8000, 3000)
    kept = []
    measure_memory(lambda: kept.append(torch.empty(10, dtype=torch.uint8)), CPU)
    assert measure_memory(lambda: None, CPU).peak_bytes == 0


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so: `clock[0]` in seconds."""
    now = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_what_is_prepared_is_not_timed(clock):
    def prepare():
        clock[0] += 100.0
        return "prepared"

    def work(prepared):
        assert prepared == "prepared"
        clock[0] += 0.001

    samples = time_rounds(work, CPU, rounds=3, budget_seconds=0, prepare=prepare).samples
    assert samples == pytest.approx([0.001] * 3)


def test_short_work_is_repeated_within_a_round(clock):
    calls = []

    def work(_):
        calls.append(0)
        clock[0] += 0.0001

    assert time_rounds(work, CPU, rounds=3, budget_seconds=0).samples == pytest.approx([0.0001] * 3)
    assert len(calls) == pytest.approx(3 + 3 * 100, abs=3)  # a round takes a hundredth of a second


def test_warm_up_lasts_until_rounds_agree(clock):
    durations = iter([9.0, 3.0, 2.0, 1.01, 1.0, 5.0, 6.0, 7.0])

    def work(_):
        clock[0] += next(durations)

    timing = time_rounds(work, CPU, rounds=3, budget_seconds=7.5)
    assert timing.samples == pytest.approx([5.0, 6.0, 7.0]) and timing.first_seconds == pytest.approx(9.0)


@pytest.mark.parametrize("budget_seconds", [0.0, 1e-6])
def test_a_first_call_that_compiles_neither_ends_the_warm_up_nor_is_compared(clock, budget_seconds):
    """The second call may still allocate, and capture what the third replays."""
    durations = iter([2.5, 2.4, 0.5, 1.0, 1.1, 1.2])

    def work(_):
        clock[0] += next(durations)

    timing = time_rounds(work, CPU, rounds=3, budget_seconds=budget_seconds)
    assert timing.first_seconds == pytest.approx(2.5)
    assert timing.samples == pytest.approx([1.0, 1.1, 1.2])


def test_rounds_go_on_while_the_budget_lasts(clock):
    def work(_):
        clock[0] += 1.0

    assert len(time_rounds(work, CPU, rounds=3, budget_seconds=0).samples) == 3
    assert len(time_rounds(work, CPU, rounds=3, budget_seconds=9.5).samples) == 10
    assert len(time_rounds(work, CPU, rounds=3, budget_seconds=1e9).samples) == 100


def test_quartiles():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


def test_a_device_without_a_meter_is_refused():
    for call in (lambda d: measure_memory(dict, d), lambda d: time_rounds(dict, d, rounds=3, budget_seconds=0)):
        with pytest.raises(ValueError, match="cannot be measured on meta; use cpu or cuda"):
            call(torch.device("meta"))


def test_grids_are_split_into_cases(known, tmp_path):
    speed = Speed(modes=("forward", "decode"), lengths=(8, 16), batch=3)
    cases = speed.cases()
    assert [(c.lengths, c.modes) for c in cases] == [
        ((8,), ("forward",)),
        ((8,), ("decode",)),
        ((16,), ("forward",)),
        ((16,), ("decode",)),
    ]
    assert {c.batch for c in cases} == {3} and cases[0].cases() == [cases[0]]
    assert len(Memory(lengths=(8,)).cases()) == 2
    assert Speed.exclusive and Memory.exclusive
    with pytest.raises(ValueError, match=r"one of its modes, got \['forward', 'decode'\]"):
        run(speed, known(), tmp_path)


@pytest.mark.parametrize(
    "fields", [{"modes": ()}, {"modes": ("backward",)}, {"lengths": (0,)}, {"rounds": 1}, {"size": 3}]
)
def test_parameters_that_cannot_be_measured_are_refused(fields):
    with pytest.raises(ValueError):
        Speed(**fields)
