"""The diagonal state space model: backends against one another, and against a dense convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mixerzoo.mixers.ops.diagonal_ssm import diagonal_ssm
from torch import Tensor
from torch.autograd import gradcheck

CHANNELS, D_STATE = 3, 4
DTYPES = [torch.float64, torch.complex128]


def problem(time: int, dtype: torch.dtype) -> list[Tensor]:
    """values, transition, readout, state; one transition is 0."""
    generator = torch.Generator().manual_seed(time)
    transition, readout = (torch.randn(CHANNELS, D_STATE, generator=generator, dtype=dtype) for _ in range(2))
    transition = transition / transition.abs().clamp(min=1)
    transition[0, 0] = 0
    values = torch.randn(2, time, CHANNELS, generator=generator, dtype=torch.float64)
    return [values, transition, readout, torch.randn(2, CHANNELS, D_STATE, generator=generator, dtype=dtype)]


def run(*inputs: Tensor, backend: str = "chunked", chunk_size: int = 16) -> tuple[Tensor, Tensor]:
    values, transition, readout, state = inputs
    y, end = diagonal_ssm(
        values, transition, readout, state=state, return_state=True, backend=backend, chunk_size=chunk_size
    )
    assert end is not None
    return y, end


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 50])
def test_backends_agree(time: int, dtype: torch.dtype) -> None:
    inputs = problem(time, dtype)
    for found, expected in zip(run(*inputs), run(*inputs, backend="reference")):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype: torch.dtype) -> None:
    gradcheck(run, [x.requires_grad_() for x in problem(37, dtype)], fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_a_convolution(oracle: Any, dtype: torch.dtype) -> None:
    values, transition, readout, _ = problem(100, dtype)
    y, _ = diagonal_ssm(values, transition, readout, chunk_size=16)
    a, c, x = (t.numpy() for t in (transition, readout, values))
    filters = np.einsum("dn,dnt->dt", c, a[..., None] ** np.arange(100)).real
    expected = [[np.convolve(row[:, d], filters[d])[:100] for d in range(CHANNELS)] for row in x]
    oracle("diagonal_ssm", "numpy.convolve with the filter", y, torch.from_numpy(np.array(expected)).mT, limit=1e-12)


def test_refuses_what_does_not_fit() -> None:
    values, transition, readout, state = problem(4, torch.complex128)
    with pytest.raises(ValueError, match=r"transition must be \[channels = 3, d_state >= 1\], got \[2, 4\]"):
        diagonal_ssm(values, transition[:2], readout[:2])
    with pytest.raises(ValueError, match=r"readout must be like transition, .*complex128 \[3, 4\], got torch.float64"):
        diagonal_ssm(values, transition, readout.real)
    with pytest.raises(ValueError, match=r"state must be \[2, 3, 4\], got \[1, 3, 4\]"):
        diagonal_ssm(values, transition, readout, state=state[:1])
