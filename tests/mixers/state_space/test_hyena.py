"""Hyena against dense Toeplitz matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mixerzoo.mixers import create_mixer
from scipy.linalg import toeplitz
from torch.nn import functional as F

D_MODEL, TIME = 6, 70


def dense_filters(mixer: Any) -> np.ndarray:
    """`[TIME, channels]`, position by position; filters go on beyond the filter length."""
    weights = {name: value.detach().numpy() for name, value in mixer.filter.named_parameters()}
    channels = (mixer.order - 1) * D_MODEL
    filters = []
    for position in range(TIME):
        t = position / mixer.filter_length
        waves = [2 * np.pi * t * band for band in (1e-4, 1.0)]
        h = np.array([t, *np.cos(waves), *-np.sin(waves)])
        for i in range(3):
            h = np.sin(weights["frequency"] * (weights[f"hidden.{i}.weight"] @ h + weights[f"hidden.{i}.bias"]))
        slowness = 1 / np.linspace(1 / 1.5, 1 / 0.3, channels)  # lengths until a window falls to 1/100
        filters.append(weights["out.weight"] @ h * 0.01 ** (t / slowness))
    return np.array(filters)


@pytest.mark.parametrize("order", [2, 3])
def test_as_dense_matrices(oracle: Any, order: int) -> None:
    torch.manual_seed(0)
    mixer: Any = create_mixer("hyena", D_MODEL, order=order, filter_length=32, filter_features=5, filter_width=8)
    mixer = mixer.double()
    x = torch.randn(1, TIME, D_MODEL, dtype=torch.float64)
    projected = F.conv1d(
        mixer.in_proj(x).mT, mixer.conv.weight[:, None], mixer.conv.bias, padding=2, groups=len(mixer.conv.bias)
    )
    *gates, v = projected[0, :, :TIME].detach().numpy().reshape(order + 1, D_MODEL, TIME)
    filters, skip = dense_filters(mixer), mixer.skip.detach().numpy()
    for i, gate in enumerate(reversed(gates[1:])):
        v = v * gate
        v = np.stack(
            [
                toeplitz(filters[:, c], np.zeros(TIME)) @ v[c % D_MODEL] + skip[c] * v[c % D_MODEL]
                for c in range(i * D_MODEL, (i + 1) * D_MODEL)
            ]
        )
    expected = mixer.o_proj(torch.from_numpy(v * gates[0]).mT)
    oracle("hyena", f"scipy.linalg.toeplitz, order {order}", mixer(x)[0][0], expected, limit=1e-10)


def test_decoding_takes_filters_from_the_state() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("hyena", D_MODEL).double()
    x = torch.randn(1, TIME, D_MODEL, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer(x[:, :-1], None, True)
        assert state.filters.length == TIME - 1
        _, after = mixer(x[:, -1:], state, True)
    assert after.filters.length == TIME and state.filters.length == TIME - 1
    torch.testing.assert_close(after.filters.values[0], mixer.filter(0, TIME))


def test_gradients_reach_the_filters_through_a_continuation() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("hyena", D_MODEL).double()
    x = torch.randn(1, TIME, D_MODEL, dtype=torch.float64)
    _, state = mixer(x[:, :40], None, True)
    found, whole = (
        torch.autograd.grad(y.square().sum(), mixer.filter.out.weight)[0]
        for y in (mixer(x[:, 40:], state)[0], mixer(x)[0][:, 40:])
    )
    torch.testing.assert_close(found, whole)


def test_refuses_half_a_pair_of_waves() -> None:
    with pytest.raises(ValueError, match="filter_features must be odd, time and pairs of waves, got 4"):
        create_mixer("hyena", D_MODEL, filter_features=4)
