"""The scalar memory of xLSTM against the package of its authors, and its own promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.contract.trial import relative_error
from mixerzoo.mixers.ops.slstm import slstm
from torch import Tensor

HEADS, D = 3, 4


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gates = 3 * torch.randn(2, 19, HEADS, 4, D, generator=generator, dtype=torch.float64)
    recurrent = torch.randn(HEADS, D, 4, D, generator=generator, dtype=torch.float64)
    return gates.to(dtype), recurrent.to(dtype)


def test_the_xlstm_package_agrees(oracle: Any) -> None:
    from xlstm.blocks.slstm.src.vanilla import slstm_forward
    from xlstm.blocks.slstm.src.vanilla.slstm import slstm_forward_pointwise

    gates, recurrent = (x.requires_grad_() for x in problem())
    weight = torch.randn(2, 19, HEADS, D, dtype=torch.float64)
    output, state = slstm(gates, recurrent, return_state=True)
    # theirs: [time, batch, 4 * heads * d], [heads, 4 * d, d]
    x = gates.transpose(2, 3).flatten(2).transpose(0, 1)
    start, bias = torch.zeros(4, 2, HEADS * D, dtype=torch.float64), torch.zeros(4 * HEADS * D, dtype=torch.float64)
    states, last, _ = slstm_forward(x, start, recurrent.flatten(2).mT, bias, slstm_forward_pointwise)
    expected = states[0, 1:].transpose(0, 1).unflatten(2, (HEADS, D))
    oracle("slstm", "xlstm slstm_forward", output, expected, limit=1e-12)
    assert state is not None
    for ours, theirs in zip(state, last):
        assert relative_error(ours, theirs.unflatten(1, (HEADS, D))) <= 1e-12
    ours = torch.autograd.grad((output * weight).sum(), (gates, recurrent))
    for actual, wanted in zip(ours, torch.autograd.grad((expected * weight).sum(), (gates, recurrent))):
        assert relative_error(actual, wanted) <= 1e-12


def test_the_definition_without_a_maximum() -> None:
    gates, recurrent = problem()
    h = c = n = torch.zeros(2, HEADS, D, dtype=torch.float64)
    outputs = []
    for t in range(gates.shape[1]):
        i, f, z, o = (gates[:, t] + torch.einsum("bhd,hdge->bhge", h, recurrent)).unbind(2)
        c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        outputs.append(h)
    assert relative_error(slstm(gates, recurrent)[0], torch.stack(outputs, dim=1)) <= 1e-12


def test_a_state_continues_with_its_gradients() -> None:
    gates, recurrent = (x.requires_grad_() for x in problem())
    whole, _ = slstm(gates, recurrent)
    first, state = slstm(gates[:, :7], recurrent, return_state=True)
    rest, none = slstm(gates[:, 7:], recurrent, state=state)
    assert none is None and relative_error(torch.cat([first, rest], dim=1), whole) <= 1e-12
    expected = torch.autograd.grad(whole[:, -1].sum(), (gates, recurrent))
    for actual, wanted in zip(torch.autograd.grad(rest[:, -1].sum(), (gates, recurrent)), expected):
        assert relative_error(actual, wanted) <= 1e-12


def test_gates_of_any_size_stay_finite() -> None:
    gates, recurrent = problem(torch.float32)
    gates = (1000 * gates).requires_grad_()
    output, _ = slstm(gates, recurrent)
    (gradient,) = torch.autograd.grad(output.sum(), gates)
    assert output.isfinite().all() and gradient.isfinite().all()


def test_sizes_are_checked() -> None:
    gates, recurrent = problem()
    with pytest.raises(ValueError, match=r"gates must be \[batch, time, heads, 4, d\].* got \[2, 19, 3, 4\]"):
        slstm(gates[..., 0], recurrent)
    with pytest.raises(ValueError, match=r"recurrent must be .* = \[3, 4, 4, 4\], got \[2, 4, 4, 4\]"):
        slstm(gates, recurrent[:2])
    _, state = slstm(gates, recurrent, return_state=True)
    assert state is not None
    with pytest.raises(ValueError, match=r"state must be four tensors .* = \[1, 3, 4\], got \[\[2, 3, 4\]"):
        slstm(gates[:1], recurrent, state=state)
