"""Mixers that need no kernel, registered for one test at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from mixerzoo.mixers import Mixer, MixerCard, MixerState, register_mixer, registry
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ToyState(MixerState):
    total: Tensor


class ToySum(Mixer):
    """A running sum in a narrow space; draws a different number of random values for every width."""

    card = MixerCard("toy_sum", "toy", "running sum", "none", None, 2026, "constant")

    def __init__(self, d_model: int, scale: float = 1.0, width: int = 8, backend: str = "auto") -> None:
        super().__init__(d_model, scale=scale, width=width, backend=backend)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.down = nn.Linear(d_model, width)
        self.up = nn.Linear(width, d_model)

    def mix(self, x, state, return_state):
        total = self.down(x).cumsum(1) + (state.total[:, None] if state else 0)
        position = (state.position if state else 0) + x.shape[1]
        y = self.up(total / torch.arange(position - x.shape[1] + 1, position + 1)[:, None])
        return y * self.options["scale"], ToyState(self.signature, x.shape[0], position, total[:, -1].clone())


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
