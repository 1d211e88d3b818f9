"""What returns NaN is not given a time: of every timing measure the case is `not_finite`, in every mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mixerzoo.benchmarks.errors import NotFiniteError
from mixerzoo.benchmarks.measures import measure_class, meter
from mixerzoo.benchmarks.measures.contest import Contender, peaks_in_turn, time_in_turn
from mixerzoo.benchmarks.measures.outputs import require_finite
from mixerzoo.benchmarks.worker import classify
from mixerzoo.mixers import Mixer, MixerCard, MixerState, option, registry
from mixerzoo.models import ModelConfig
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Nothing(MixerState):
    pass


class _Bad(torch.autograd.Function):
    """Passes on its input; the gradient it passes back is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], torch.nan)


class Spoilt(Mixer):
    """Returns `value` in place of the last feature where `when` says so."""

    card = MixerCard("spoilt", "test", "returns what it is told", "none", None, 2026, "none")

    value: float = option("what it returns", default=0.0)
    when: str = option("always, backward, or after the first call", default="always")

    def build(self) -> None:
        self.scale = nn.Parameter(torch.ones(self.d_model))
        self.calls = 0

    def mix(self, x: Tensor, state: Nothing | None, return_state: bool) -> tuple[Tensor, Nothing | None]:
        self.calls += 1
        y = x * self.scale
        if self.when == "backward":
            return _Bad.apply(y), self.next_state(Nothing, x, state)
        if self.when == "always" or (self.when == "decode" and state is not None) or self.calls > 4:
            y = y + torch.log(torch.tensor(-1.0))
        return y, self.next_state(Nothing, x, state)


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._mixers, "spoilt", Spoilt)


def run(tmp_path: Path, when: str, layout: str = "spoilt", **parameters: Any) -> None:
    config = ModelConfig(layout, d_model=16, n_layers=1, vocab_size=16, mixer_defaults={"spoilt": {"when": when}})
    name = parameters.pop("measure")
    measure = measure_class(name).model_validate({"measure": name, **parameters})
    measure.run(config, seed=0, device=CPU, folder=tmp_path, progress=lambda fraction, doing: None)


CASES = [
    ("always", {"measure": "speed", "modes": ["forward"]}),
    ("always", {"measure": "speed", "modes": ["train"]}),
    ("always", {"measure": "speed", "modes": ["prefill"]}),
    ("always", {"measure": "speed", "modes": ["decode"]}),
    ("decode", {"measure": "speed", "modes": ["decode"]}),
    ("backward", {"measure": "speed", "modes": ["train"]}),
    ("late", {"measure": "speed", "modes": ["forward"]}),
    ("always", {"measure": "memory", "modes": ["forward"]}),
    ("backward", {"measure": "memory", "modes": ["train"]}),
    ("decode", {"measure": "decode_speed"}),
    ("always", {"measure": "mixer_speed", "modes": ["forward"]}),
    ("backward", {"measure": "mixer_speed", "modes": ["train"]}),
    ("always", {"measure": "mixer_speed", "modes": ["prefill"]}),
    ("decode", {"measure": "mixer_speed", "modes": ["decode"]}),
    ("late", {"measure": "mixer_speed", "modes": ["forward"]}),
    ("backward", {"measure": "overhead", "modes": ["train"], "layout": "spoilt | identity@0"}),
]


@pytest.mark.parametrize(("when", "parameters"), CASES, ids=lambda value: str(value))
def test_a_mixer_that_returns_nan_gets_no_time(tmp_path: Path, spoilt: None, when: str, parameters: dict) -> None:
    parameters = {"lengths": [8], "rounds": 3, "budget_seconds": 0, "new_tokens": 2, **parameters}
    fields = {*measure_class(parameters["measure"]).model_fields, "layout"}
    with pytest.raises(NotFiniteError, match=r"NaN|not finite") as error:
        run(tmp_path, when, **{name: value for name, value in parameters.items() if name in fields})
    assert classify(error.value) == "not_finite"


def test_the_backends_of_an_op_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixerzoo.benchmarks.measures.op_work import FwpkmWork

    real = FwpkmWork.forward
    monkeypatch.setattr(FwpkmWork, "forward", lambda self, backend, tokens: real(self, backend, tokens) / 0)
    layout = "fwpkm(n_subkeys=8, d_k=8, d_v=8, top_k=2, chunk_size=8)"
    settings = {"modes": ["forward"], "lengths": [16], "rounds": 3, "copy_bytes": 1024}
    with pytest.raises(NotFiniteError, match="the output of compact, forward, 16 tokens"):
        run(tmp_path, "always", layout, measure="op_speed", **settings)


def test_the_last_call_counts_as_well() -> None:
    calls = iter([0.0, *[0.0] * 5, float("nan")])
    contenders = [Contender("a", "forward", 1, lambda _: torch.tensor(next(calls)), prepare=lambda: None)]
    quiet = {"progress": lambda fraction, doing: None}
    time_in_turn(contenders, CPU, rounds=3, slow_rounds=1, **quiet)
    with pytest.raises(NotFiniteError, match="a, forward, 1 tokens holds NaN"):
        peaks_in_turn(contenders, CPU, **quiet)


def test_what_is_looked_at() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, torch.inf])
    require_finite((good, [good, None, {"state": bad}], torch.arange(3), "text"), "x")
    module = nn.Linear(2, 1)
    require_finite((good, module), "x")
    module.weight.grad = bad[None]
    with pytest.raises(NotFiniteError, match="the gradient of weight of x holds infinities"):
        require_finite((good, module), "x")
    with pytest.raises(NotFiniteError, match="the output of x holds infinities"):
        require_finite([(good, bad)], "x")


def test_looking_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])

    def slow_look(result: object, work: str) -> None:
        now[0] += 100.0

    def work(_: object) -> None:
        now[0] += 1.0

    monkeypatch.setattr(meter, "require_finite", slow_look)
    timing = meter.time_rounds(work, CPU, rounds=3, budget_seconds=0)
    assert timing.samples == [1.0] * 3 and timing.first_seconds == 1.0 and now[0] > 200
