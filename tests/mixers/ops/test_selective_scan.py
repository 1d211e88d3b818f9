"""The selective scan: backends against one another, and against other people's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.selective_scan import chunked, selective_scan
from torch import Tensor
from torch.autograd import gradcheck

CHANNELS, D_STATE = 5, 3


def problem(time: int, batch: int = 2) -> list[Tensor]:
    """values, step, A, B, C, state."""
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    step, A = normal(batch, time, CHANNELS).exp(), -normal(CHANNELS, D_STATE).exp()
    B, C = normal(batch, time, D_STATE), normal(batch, time, D_STATE)
    return [normal(batch, time, CHANNELS), step, A, B, C, normal(batch, D_STATE, CHANNELS)]


def scanned(*inputs: Tensor, backend: str = "chunked") -> tuple[Tensor, Tensor]:
    y, state = selective_scan(*inputs[:5], state=inputs[5], return_state=True, backend=backend)
    assert state is not None
    return y, state


@pytest.fixture
def blocks_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CPU_BUDGET", 7 * 2 * CHANNELS * D_STATE)


@pytest.mark.parametrize("time", [1, 2, 6, 7, 8, 40])
def test_backends_agree(blocks_of_seven: None, time: int) -> None:
    inputs = [x.requires_grad_() for x in problem(time)]
    y, state = scanned(*inputs)
    expected, expected_state = scanned(*inputs, backend="reference")
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)
    weights = [torch.randn(o.shape, generator=torch.Generator().manual_seed(0), dtype=o.dtype) for o in (y, state)]
    found, wanted = (
        torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights)), inputs)
        for outputs in ((y, state), (expected, expected_state))
    )
    torch.testing.assert_close(found, wanted)


def test_derivatives(blocks_of_seven: None) -> None:
    gradcheck(scanned, [x.requires_grad_() for x in problem(17)], fast_mode=True)


def test_second_derivatives_are_refused() -> None:
    inputs = [x.requires_grad_() for x in problem(5)]
    (gradient,) = torch.autograd.grad(scanned(*inputs)[0].square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only; backend='reference' has all"):
        gradient.sum().backward()


def test_steps_of_any_size_stay_finite(blocks_of_seven: None) -> None:
    inputs = [x.float().requires_grad_() for x in problem(40)]
    with torch.no_grad():
        inputs[1] *= torch.logspace(-6, 6, 40)[:, None]
    y, state = scanned(*inputs)
    expected, _ = scanned(*(x.double() for x in inputs), backend="reference")
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(y.sum() + state.sum(), inputs)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("recurrent", [True, False], ids=["recurrent", "mambapy"])
def test_as_transformers(oracle: Any, recurrent: bool) -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    values, step, A, B, C, _ = (x.float() for x in problem(60))
    theirs = (x.mT for x in (values, step))
    y, state = mamba_selective_scan(*theirs, A, B.mT, C.mT, return_last_state=True, use_mambapy=not recurrent)
    found, last = selective_scan(values, step, A, B, C, return_state=True)
    name = f"transformers mamba_selective_scan, {'recurrent' if recurrent else 'mambapy'}"
    oracle("selective_scan", name, found, y.mT, limit=1e-6)
    oracle("selective_scan", f"{name}, state", last, state.mT, limit=1e-6)


def test_refuses_what_does_not_fit() -> None:
    values, step, A, B, C, state = problem(4)
    with pytest.raises(ValueError, match=r"step must be \[2, 4, 5\] .* got \[2, 3, 5\]"):
        selective_scan(values, step[:, :3], A, B, C)
    with pytest.raises(ValueError, match=r"A must be \[channels = 5, d_state >= 1\], got \[4, 3\]"):
        selective_scan(values, step, A[:4], B, C)
    with pytest.raises(ValueError, match=r"B must be \[2, 4, 3\] .* got \[2, 4, 2\]"):
        selective_scan(values, step, A, B[..., :2], C)
    with pytest.raises(ValueError, match=r"state must be \[2, 3, 5\] .* got \[2, 5, 3\]"):
        selective_scan(values, step, A, B, C, state=state.mT)
