"""The linear recurrence: backends against one another, and against other people's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.scan import linear_scan
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

DTYPES = [torch.float64, torch.complex128]


def problem(time: int, dtype: torch.dtype, channels: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor, Tensor]:
    """Decays of all sizes up to 1, zeros among them; writes; a state."""
    generator = torch.Generator().manual_seed(time)
    shape = (2, time, *channels)
    sizes = torch.rand(shape, generator=generator, dtype=torch.float64) ** 0.3
    sizes[sizes < 0.3] = 0
    turns = torch.randn(shape, generator=generator, dtype=dtype)
    writes, state = (torch.randn(s, generator=generator, dtype=dtype) for s in (shape, (2, *channels)))
    return turns / turns.abs() * sizes, writes, state


def scanned(decay: Tensor, writes: Tensor, state: Tensor, backend: str = "chunked") -> tuple[Tensor, Tensor]:
    h, last = linear_scan(decay, writes, state=state, return_state=True, backend=backend)
    assert last is not None
    return h, last


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 200, 64 * 64 + 65])
def test_backends_agree(time: int, dtype: torch.dtype) -> None:
    inputs = problem(time, dtype)
    for found, expected in zip(scanned(*inputs), scanned(*inputs, backend="reference")):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype: torch.dtype) -> None:
    inputs = [x.requires_grad_() for x in problem(133, dtype, channels=(2,))]
    gradcheck(scanned, inputs, fast_mode=True)
    gradgradcheck(scanned, inputs, fast_mode=True)


def test_it_continues() -> None:
    decay, writes, state = problem(150, torch.float64)
    whole, end = scanned(decay, writes, state)
    first, middle = scanned(decay[:, :70], writes[:, :70], state)
    rest, last = scanned(decay[:, 70:], writes[:, 70:], middle)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole)
    torch.testing.assert_close(last, end)


def test_decays_that_vanish_do_not_become_nan() -> None:
    decay = torch.full((1, 500, 4), 1e-30)
    writes = torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear_scan(decay, writes)[0], writes)


def test_low_precision_is_computed_in_float32() -> None:
    decay, writes = torch.ones(1, 4000, 1, dtype=torch.bfloat16), torch.ones(1, 4000, 1, dtype=torch.bfloat16)
    h, state = linear_scan(decay, writes, return_state=True)
    assert state is not None and state.dtype == torch.float32 and state.item() == 4000  # bfloat16 stops at 256
    assert h.dtype == torch.bfloat16


def test_as_hgrn_of_fla(oracle: Any) -> None:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    decay, writes, state = (x.float() for x in problem(300, torch.float64))
    log_decay = decay.abs().log()
    expected, expected_state = naive_recurrent_hgrn(writes, log_decay, state, output_final_state=True)
    h, last = scanned(decay.abs(), writes, state)
    oracle("scan", "fla-core naive_recurrent_hgrn", h, expected, limit=1e-6)
    oracle("scan", "fla-core naive_recurrent_hgrn, state", last, expected_state, limit=1e-6)


def test_as_the_parallel_scan_of_mambapy(oracle: Any) -> None:
    from mambapy.pscan import pscan

    inputs = [x.requires_grad_() for x in problem(300, torch.float64, channels=(3, 4))[:2]]
    h, expected = linear_scan(*inputs)[0], pscan(*inputs)
    weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=h.dtype)
    oracle("scan", "mambapy pscan", h, expected, limit=1e-12)
    for name, found, theirs in zip(
        ("decay", "writes"),
        torch.autograd.grad((h * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
    ):
        oracle("scan", f"mambapy pscan, gradient of {name}", found, theirs, limit=1e-12)


def test_refuses_what_does_not_fit() -> None:
    decay, writes, state = problem(5, torch.float64)
    with pytest.raises(ValueError, match=r"decay must have the shape of writes, \[2, 5, 3\], got \[2, 4, 3\]"):
        linear_scan(decay[:, :4], writes)
    with pytest.raises(ValueError, match=r"state must be .* \[2, 3\], got \[1, 3\]"):
        linear_scan(decay, writes, state=state[:1])
    with pytest.raises(ValueError, match=r"writes must be .* got \[2, 0, 3\]"):
        linear_scan(decay[:, :0], writes[:, :0])
