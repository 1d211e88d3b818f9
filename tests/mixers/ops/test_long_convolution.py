"""The long convolution: backends against one another, and against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mixerzoo.mixers.ops.long_convolution import fft, long_convolution
from torch import Tensor
from torch.autograd import gradcheck


def problem(time: int, lags: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    inputs = torch.randn(2, time, channels, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(lags, channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("time", "outputs"), [(1, 1), (2, 2), (50, 1), (50, 2), (50, 17), (50, 50), (64, 64), (65, 5)])
def test_backends_agree(time: int, outputs: int) -> None:
    inputs, filters = problem(time, time + 3)
    expected = long_convolution(inputs, filters, outputs=outputs, backend="reference")
    torch.testing.assert_close(long_convolution(inputs, filters, outputs=outputs), expected)
    torch.testing.assert_close(long_convolution(inputs, filters)[:, time - outputs :], expected)


def test_channels_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, filters = problem(20, 20, channels=5)
    whole = long_convolution(inputs, filters)
    monkeypatch.setattr(fft, "BUDGET", 2 * 2 * 40)
    torch.testing.assert_close(long_convolution(inputs, filters), whole)


@pytest.mark.parametrize("outputs", [1, 4, 20])
def test_derivatives(outputs: int) -> None:
    inputs = [x.requires_grad_() for x in problem(20, 22)]
    gradcheck(lambda x, h: long_convolution(x, h, outputs=outputs), inputs, fast_mode=True)


def test_as_numpy(oracle: Any) -> None:
    inputs, filters = problem(90, 90)
    rows = [[np.convolve(x[:, d], filters.numpy()[:, d])[:90] for d in range(3)] for x in inputs.numpy()]
    expected = torch.from_numpy(np.array(rows)).mT
    oracle("long_convolution", "numpy.convolve", long_convolution(inputs, filters), expected, limit=1e-12)


def test_refuses_what_does_not_fit() -> None:
    inputs, filters = problem(4, 4)
    with pytest.raises(ValueError, match=r"filters must be \[lags >= 4, channels = 3\], got \[3, 3\]"):
        long_convolution(inputs, filters[:3])
    with pytest.raises(ValueError, match="outputs must be from 1 to time = 4, got 5"):
        long_convolution(inputs, filters, outputs=5)
