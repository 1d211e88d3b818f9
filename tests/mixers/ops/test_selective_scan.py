"""The selective scan: backends against one another, and against other people's."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.selective_scan import OP, chunked, mamba_ssm, selective_scan
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


def fake_mamba_ssm(monkeypatch):
    """The functions of mamba-ssm 2.3 with their signatures, what they assert and what they overwrite, computed by our
    definition; returns the names of those called."""
    called = []

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        called.append("selective_scan_fn")
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == torch.float32
        assert all(x.stride(-1) == 1 for x in (u, delta, B, C))
        assert u.shape == delta.shape and B.shape == C.shape == (len(u), A.shape[1], u.shape[2])
        y, last = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, return_state=True, backend="reference")
        last = last.detach()  # its backward pass leaves it out
        return (y.mT, last.mT) if return_last_state else y.mT

    def selective_state_update(
        state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None
    ):
        called.append("selective_state_update")
        assert D is not None and dt_bias is not None  # it unpacks their strides, or fails
        assert state.shape == (*x.shape, A.shape[1]) and dt.shape == x.shape and B.shape == C.shape
        x, dt, B, C = (t.detach()[:, None] for t in (x, dt + dt_bias, B, C))
        y, after = selective_scan(x, dt, A, B, C, state=state.mT, return_state=True, backend="reference")
        state.copy_(after.mT)
        return y[:, 0]

    modules = {
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.selective_state_update": {"selective_state_update": selective_state_update},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    here = dataclasses.replace(OP.backends["mamba_ssm"], why_not=lambda device: None)
    monkeypatch.setitem(OP.backends, "mamba_ssm", here)
    return called


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mambas_kernels_give_the_same_however_the_text_is_cut(monkeypatch, dtype):
    called = fake_mamba_ssm(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    values, B, C = (torch.randn(2, 9, n, generator=generator).to(dtype) for n in (6, 4, 4))
    step, A = torch.rand(2, 9, 6, generator=generator), -torch.rand(6, 4, generator=generator)
    expected, last = selective_scan(values, step, A, B, C, return_state=True, backend="reference")
    monkeypatch.setattr(mamba_ssm, "PIECE", 100)  # two tokens
    for cuts in ([9], [4, 5], [3, 1, 1, 4]):
        state, parts = None, []
        for x, dt, b, c in zip(*(t.split(cuts, dim=1) for t in (values, step, B, C))):
            before = None if state is None else state.clone()
            y, after = selective_scan(x, dt, A, b, c, state=state, return_state=True, backend="mamba_ssm")
            assert state is None or torch.equal(state, before)
            parts, state = [*parts, y], after
        assert parts[0].dtype == dtype and state.dtype == torch.float32
        torch.testing.assert_close(
            torch.cat(parts, 1), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5
        )
        torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)
    assert called == ["selective_scan_fn"] * 4 + ["selective_state_update"] * 2 + ["selective_scan_fn"]


def test_mambas_kernel_has_the_gradients_of_a_fresh_text_and_refuses_those_of_states(monkeypatch):
    fake_mamba_ssm(monkeypatch)
    inputs = [torch.rand(1, 5, n, requires_grad=True) for n in (3, 3, 2, 2)]
    A = (-torch.rand(3, 2)).requires_grad_()
    arguments = (*inputs[:2], A, *inputs[2:])
    gradients = [
        torch.autograd.grad(selective_scan(*arguments, backend=b)[0].sin().sum(), arguments)
        for b in ("mamba_ssm", "reference")
    ]
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="no gradient through states"):
        selective_scan(*arguments, return_state=True, backend="mamba_ssm")
    with pytest.raises(RuntimeError, match="no gradient through states"):
        selective_scan(*arguments, state=torch.zeros(1, 2, 3), backend="mamba_ssm")
    with pytest.raises(RuntimeError, match="float64"):
        selective_scan(*(x.double() for x in arguments), backend="mamba_ssm")
    with pytest.raises(RuntimeError, match="256 numbers per channel at most, got 300"), torch.no_grad():
        wide = torch.rand(1, 5, 300)
        selective_scan(*inputs[:2], -torch.rand(3, 300), wide, wide, backend="mamba_ssm")


def test_mambas_cuda_kernel_may_be_missing(monkeypatch):
    """Newer versions install without it unless told otherwise."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "mamba_ssm" else None)
    assert "MAMBA_KEEP_CUDA_BUILD" in mamba_ssm.why_not(torch.device("cuda"))
    assert "CUDA device" in mamba_ssm.why_not(torch.device("cpu"))
