"""S4D against scipy's discretisation and simulation of dense state space models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.state_space.s4d import initial_A
from scipy import signal
from torch.nn import functional as F

D_MODEL, TIME = 4, 80


def dense_system(mixer: Any, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and C in real numbers; a complex number turns a plane."""
    decay, C = mixer.A_log[channel].exp().detach().numpy(), mixer.C[channel].detach().numpy()
    if mixer.A_imag is None:
        return -np.diag(decay), np.ones((len(decay), 1)), C[None]
    n = len(decay)
    turn = np.diag(mixer.A_imag[channel].detach().numpy())
    A = np.block([[-np.diag(decay), -turn], [turn, -np.diag(decay)]])
    return A, np.concatenate([np.ones(n), np.zeros(n)])[:, None], 2 * np.concatenate([C[:, 0], -C[:, 1]])[None]


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
@pytest.mark.parametrize("initialisation", ["lin", "inv", "real"])
def test_as_scipy(oracle: Any, initialisation: str, discretisation: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(
        "s4d", D_MODEL, d_state=6, initialisation=initialisation, discretisation=discretisation, chunk_size=16
    ).double()
    x = torch.randn(1, TIME, D_MODEL, dtype=torch.float64)
    channels = []
    for d, step in enumerate(mixer.log_step.exp().tolist()):
        A, B, C = dense_system(mixer, d)
        A, B, *_ = signal.cont2discrete((A, B, C, np.zeros((1, 1))), step, method=discretisation)
        # scipy reads a state before it is written to, S4D after
        _, y, _ = signal.dlsim((A, B, C @ A, C @ B, 1.0), x[0, :, d].numpy())
        channels.append(torch.from_numpy(y[:, 0]))
    expected = torch.stack(channels, dim=-1) + mixer.D * x[0]
    expected = F.glu(mixer.o_proj(F.gelu(expected)), dim=-1)
    source = f"scipy.signal cont2discrete and dlsim, {initialisation}, {discretisation}"
    oracle("s4d", source, mixer(x)[0][0], expected, limit=1e-10)


def test_initial_frequencies() -> None:
    decay, frequency = initial_A("lin", 8)
    assert frequency is not None and decay.tolist() == [0.5] * 4
    torch.testing.assert_close(frequency, math.pi * torch.arange(4.0))
    _, frequency = initial_A("inv", 8)
    assert frequency is not None
    torch.testing.assert_close(frequency, 8 / math.pi * torch.tensor([7.0, 8 / 3 - 1, 8 / 5 - 1, 8 / 7 - 1]))
    decay, frequency = initial_A("real", 3)
    assert frequency is None and decay.tolist() == [1, 2, 3]


def test_refuses_an_odd_number_of_complex_ones() -> None:
    with pytest.raises(ValueError, match=r"d_state must be even .* got 7; or initialisation='real'"):
        create_mixer("s4d", D_MODEL, d_state=7)
