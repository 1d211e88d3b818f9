"""Mixers that need no kernel, registered for one test at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from mixerzoo.mixers import Mixer, MixerCard, MixerState, option, register_mixer, registry
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ToyState(MixerState):
    total: Tensor


class ToySum(Mixer):
    """A running sum in a narrow space; draws a different number of random values for every width."""

    card = MixerCard("toy_sum", "toy", "running sum", "none", None, 2026, "constant")

    scale: float = option("of the output", default=1.0)
    width: int = option("of the space", default=8, least=1)

    def build(self) -> None:
        self.down = nn.Linear(self.d_model, self.width)
        self.up = nn.Linear(self.width, self.d_model)

    def mix(self, x, state, return_state):
        total = self.down(x).cumsum(1) + (state.total[:, None] if state else 0)
        position = (state.position if state else 0) + x.shape[1]
        y = self.up(total / torch.arange(position - x.shape[1] + 1, position + 1)[:, None])
        return y * self.scale, self.next_state(ToyState, x, state, total=total[:, -1].clone())


class ToyDouble(ToySum):
    """Returns float64, whatever its input: a badly behaved mixer."""

    card = MixerCard("toy_double", "toy", "running sum", "none", None, 2026, "constant")

    def mix(self, x, state, return_state):
        y, state = super().mix(x, state, return_state)
        return y.double(), state


class ToyTable(ToySum):
    card = MixerCard("toy_table", "toy", "in place of a SwiGLU", "none", None, 2026, "constant", role="feed_forward")


@pytest.fixture(autouse=True)
def toy_mixers(monkeypatch):
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))
    for cls in (ToySum, ToyDouble, ToyTable):
        register_mixer(cls)
