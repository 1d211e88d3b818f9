"""Stick-breaking attention: its backends against each other, and against fla's."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers.ops.stick_breaking import stick_breaking
from torch import Tensor

SIZES = [(1, 1), (1, 30), (5, 5), (7, 20), (64, 64), (65, 65), (130, 150)]


def inputs(time: int, key_time: int, kv_heads: int = 2, d_value: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time + key_time)
    shapes = (2, time, 4, 6), (2, key_time, kv_heads, 6), (2, key_time, kv_heads, d_value)
    return [2 * torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("time", "key_time"), SIZES)
@pytest.mark.parametrize("attend_current", [False, True])
@pytest.mark.parametrize("remainder", [False, True])
def test_blocks_agree_with_the_definition_and_its_gradients(time, key_time, attend_current, remainder):
    tensors = inputs(time, key_time, kv_heads=1 if key_time == 20 else 2)
    weight = torch.randn(2, time, 4, 5, dtype=torch.float64)
    results = []
    for backend in ("blockwise", "reference"):
        y = stick_breaking(*tensors, attend_current=attend_current, remainder=remainder, backend=backend)
        results.append((y, *torch.autograd.grad((y * weight).sum(), tensors, materialize_grads=True)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        y = stick_breaking(*tensors, attend_current=attend_current, remainder=remainder)
    torch.testing.assert_close(y, results[1][0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("attend_current", [False, True])
def test_it_is_that_of_fla(oracle, attend_current):
    from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn

    q, k, v = inputs(70, 70)
    expected, left = naive_stickbreaking_attn(q, k, v, attend_current=attend_current)
    y = stick_breaking(q, k, v, attend_current=attend_current)
    oracle("stick_breaking_attention", "fla-core naive_stickbreaking_attn", y, expected, limit=1e-12)
    with_rest = expected + left.unsqueeze(-1) * v.repeat_interleave(2, dim=2)
    y = stick_breaking(q, k, v, attend_current=attend_current, remainder=True)
    oracle("stick_breaking_attention", "fla-core naive_stickbreaking_attn, with the rest", y, with_rest, limit=1e-12)


@pytest.mark.parametrize("likes", [-8.0, 0.0, 3.0])  # no stick is used up, or after many keys, or after a few
def test_keys_beyond_the_end_of_all_sticks_are_not_missed(likes):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1300, 1, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    q[..., 0], k[..., 0] = 1.0, 2 * likes
    results = []
    for backend in ("blockwise", "reference"):
        tensors = [x.clone().requires_grad_() for x in (q, k, v)]
        y = stick_breaking(*tensors, remainder=True, backend=backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_large_logits_stay_exact():
    q, k, v = (100 * x.detach() for x in inputs(70, 70))
    expected = stick_breaking(q, k, v, remainder=True, backend="reference")
    assert expected.isfinite().all()
    torch.testing.assert_close(stick_breaking(q, k, v, remainder=True), expected, rtol=1e-10, atol=1e-10)
    y = stick_breaking(q.float(), k.float(), v.float(), remainder=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1)


def test_weights_add_up_to_one_with_the_remainder():
    q, k, _ = inputs(40, 60)
    y = stick_breaking(q, k, torch.ones_like(k), remainder=True)
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-12)


def test_sizes_that_do_not_fit_are_refused():
    q, k, v = inputs(5, 5)
    with pytest.raises(ValueError, match="key_time >= 5"):
        stick_breaking(q, k[:, 1:], v[:, 1:])
    with pytest.raises(ValueError, match="no backend 'fast'"):
        stick_breaking(q, k, v, backend="fast")
