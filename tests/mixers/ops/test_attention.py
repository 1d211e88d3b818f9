"""Attention with sinks, with forgetting, and with values of another size: every backend against the definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from mixerzoo.mixers.ops.attention import OP, attention
from torch import Tensor
from torch.nn import functional as F

SIZES = [
    (1, 1, None),
    (1, 9, None),
    (1, 20, 5),
    (7, 7, None),
    (7, 20, None),
    (530, 600, None),  # more than one block of queries that continue a cache
    (7, 20, 5),
    (101, 101, 33),
    (66, 90, 33),
]
EXTRAS = [
    extra for extra in itertools.product([False, True], [False, True], [6, 12, 4, 9]) if extra != (False, False, 6)
]


def inputs(time: int, key_time: int, kv_heads: int, sinks: bool, forgetting: bool, d_value: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time + d_value)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "queries": normal(2, time, 4, 6),
        "keys": normal(2, key_time, kv_heads, 6),
        "values": normal(2, key_time, kv_heads, d_value),
    }
    if sinks:
        tensors["sinks"] = normal(4)
    if forgetting:
        tensors["log_forget"] = F.logsigmoid(normal(2, key_time, 4))
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("time", "key_time", "window"), SIZES)
@pytest.mark.parametrize(("sinks", "forgetting", "d_value"), EXTRAS)
def test_sdpa_agrees_with_the_definition_and_its_gradients(time, key_time, window, sinks, forgetting, d_value):
    tensors = inputs(time, key_time, (1, 2, 4)[d_value % 3], sinks, forgetting, d_value)
    weight = torch.randn(2, time, 4, d_value, dtype=torch.float64)
    results = []
    for backend in ("sdpa", "reference"):
        y = attention(**tensors, window=window, scale=0.3, backend=backend)
        # the only log_forget of one key is between no two tokens
        gradients = torch.autograd.grad((y * weight).sum(), list(tensors.values()), materialize_grads=True)
        results.append((y, *gradients))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)
    with torch.no_grad():  # other paths, where no gradient is needed
        y = attention(**tensors, window=window, scale=0.3)
    torch.testing.assert_close(y, results[1][0], rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize(("time", "key_time", "window"), [(1, 9, None), (7, 7, None), (7, 20, 5)])
@pytest.mark.parametrize(("sinks", "forgetting"), [(False, False), (True, False), (True, True)])
def test_flex_agrees_with_the_definition(time, key_time, window, sinks, forgetting):
    tensors = inputs(time, key_time, 2, sinks, forgetting, 6)
    y = attention(**tensors, window=window, backend="flex")
    torch.testing.assert_close(y, attention(**tensors, window=window, backend="reference"), rtol=0, atol=1e-12)


def test_flex_says_that_it_has_no_gradients_on_a_cpu():
    with pytest.raises(RuntimeError, match=r"no gradients on a CPU; call it under torch\.no_grad"):
        attention(**inputs(3, 3, 2, False, False, 6), backend="flex")
    assert "flex" not in OP.available()


@torch.no_grad()
@pytest.mark.parametrize("time", [2048, 50, 1])
def test_forgetting_stays_exact_in_float32_however_much_is_forgotten(time):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2048, 2, 16, generator=generator) for _ in range(3))
    log_forget = F.logsigmoid(4 * torch.randn(1, 2048, 2, generator=generator))
    assert log_forget.sum(1).max() < -2000
    y = attention(q[:, -time:], k, v, log_forget=log_forget)
    doubles = (x.double() for x in (q[:, -time:], k, v))
    expected = attention(*doubles, log_forget=log_forget.double(), backend="reference")
    assert (y - expected).norm() < 5e-7 * expected.norm()


def test_it_is_that_of_fla(oracle):
    from fla.ops.attn.naive import naive_parallel_attn
    from fla.ops.forgetting_attn.naive import naive_forgetting_attn

    for window in (None, 7):
        tensors = {n: t.detach().float() for n, t in inputs(40, 40, 2, True, True, 6).items()}
        q, k, v, sinks, log_forget = tensors.values()
        expected, _ = naive_parallel_attn(q, k, v, window_size=window, g=log_forget, sink_bias=sinks)
        oracle("softmax_attention", "fla-core naive_parallel_attn", attention(**tensors, window=window), expected)
        y = attention(q, k, v, log_forget=log_forget, window=window)
        expected = naive_forgetting_attn(q, k, v, log_forget, window_size=window)
        oracle("forgetting_attention", "fla-core naive_forgetting_attn", y, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sinks": torch.zeros(2)}, r"sinks must be \[heads = 4\], got \[2\]"),
        ({"log_forget": torch.zeros(2, 5, 2)}, r"log_forget must be \[batch = 2, key_time = 5, heads = 4\]"),
        ({"values": torch.zeros(2, 5, 1, 6)}, "values must be"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        attention(**{**inputs(5, 5, 2, False, False, 6), **changes})
