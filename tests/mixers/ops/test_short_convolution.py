"""The short convolution: backends against its definition, and the adapter to causal-conv1d against its demands."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
from mixerzoo.mixers.ops.short_convolution import OP, reference, short_convolution
from torch import Tensor


def problem(channels: int, size: int, time: int, bias: bool, dtype=torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, time, channels), "weight": (channels, size), "state": (2, size - 1, channels)}
    shapes |= {"bias": (channels,)} if bias else {}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


def results(given: dict[str, Tensor], **options):
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    y, state = short_convolution(**leaves, **options)
    wanted = [x for x in leaves.values() if x.numel()]
    return y, state, *torch.autograd.grad(y.sin().sum() + state.cos().sum(), wanted, allow_unused=True)


def assert_close(found, expected, **tolerance):
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize(("size", "time"), [(1, 3), (4, 1), (4, 2), (3, 9)])
@pytest.mark.parametrize(("bias", "activation"), [(False, None), (True, "silu")])
def test_shifted_products_are_the_definition(size, time, bias, activation):
    given = problem(5, size, time, bias)
    assert_close(results(given, activation=activation), results(given, activation=activation, backend="reference"))


def test_it_is_torchs_convolution():
    given = problem(6, 4, 9, bias=True)
    y, state = short_convolution(**given, activation="silu")
    seen = torch.cat([given["state"], given["x"]], 1)
    expected = torch.nn.functional.conv1d(seen.mT, given["weight"][:, None], given["bias"], groups=6).mT
    torch.testing.assert_close(y, torch.nn.functional.silu(expected))
    assert torch.equal(state, given["x"][:, -3:])


def fake_causal_conv1d(monkeypatch) -> list[str]:
    """The functions of causal-conv1d 1.6 with their signatures and what they assert, computed by our definition;
    returns the names of those called."""
    called = []

    def causal_conv1d_fn(
        x,
        weight,
        bias=None,
        seq_idx=None,
        initial_states=None,
        return_final_states=False,
        final_states_out=None,
        activation=None,
    ):
        called.append("fn")
        assert seq_idx is None and final_states_out is None and not return_final_states
        assert x.shape[1] % 8 == 0 and 2 <= weight.shape[1] <= 4
        assert x.stride(1) == 1 and x.stride(2) > 1 and x.stride(2) % 8 == x.stride(0) % 8 == 0
        assert x.storage_offset() % 8 == 0 and initial_states.dtype == x.dtype and initial_states.stride(1) == 1
        assert bias is None or (bias.dtype == weight.dtype and bias.is_contiguous())
        return reference.short_convolution(x.mT, weight, bias, activation, initial_states.mT)[0].mT

    def causal_conv1d_update(
        x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, conv_state_indices=None
    ):
        called.append("update")
        assert x.ndim == 2 and conv_state.dtype == x.dtype and 2 <= weight.shape[1] <= 4
        assert conv_state.shape == (*x.shape, weight.shape[1] - 1)
        y, after = reference.short_convolution(x[:, None], weight, bias, activation, conv_state.mT)
        conv_state.copy_(after.mT)
        return y[:, 0]

    module = ModuleType("causal_conv1d")
    module.__dict__.update(causal_conv1d_fn=causal_conv1d_fn, causal_conv1d_update=causal_conv1d_update)
    monkeypatch.setitem(sys.modules, "causal_conv1d", module)
    here = dataclasses.replace(OP.backends["causal_conv1d"], why_not=lambda device: None)
    monkeypatch.setitem(OP.backends, "causal_conv1d", here)
    return called


@pytest.mark.parametrize(("channels", "size", "time"), [(16, 4, 9), (5, 3, 2), (5, 2, 1)])
@pytest.mark.parametrize(("bias", "activation"), [(False, None), (True, "silu")])
def test_causal_conv1d_gives_the_same_with_gradients(monkeypatch, channels, size, time, bias, activation):
    """Channels that are no multiple of 8 are filled up and cut again."""
    called = fake_causal_conv1d(monkeypatch)
    given = problem(channels, size, time, bias, torch.float32)
    found = results(given, activation=activation, backend="causal_conv1d")
    assert_close(found, results(given, activation=activation))
    assert called == ["fn"] and found[1].is_contiguous()


@pytest.mark.parametrize("channels", [8, 5])
def test_causal_conv1d_decodes_from_a_state_that_it_leaves_alone(monkeypatch, channels):
    called = fake_causal_conv1d(monkeypatch)
    given = problem(channels, 4, 7, True, torch.bfloat16)
    given["weight"], given["bias"] = given["weight"].float(), given["bias"].float()
    x, state = given.pop("x"), given.pop("state")
    expected, last = short_convolution(x, **given, activation="silu", state=state)
    parts = []
    with torch.no_grad():
        for part in x.split([3, 1, 1, 2], dim=1):
            before = state.clone()
            y, after = short_convolution(part, **given, activation="silu", state=state, backend="causal_conv1d")
            assert torch.equal(state, before)
            parts, state = [*parts, y], after
    assert called == ["fn", "update", "update", "fn"]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=2e-2, atol=2e-2)
    assert torch.equal(state, last)


def test_a_part_of_a_projection_is_copied_only_where_the_kernel_could_not_read_it(monkeypatch):
    fake_causal_conv1d(monkeypatch)
    weight = torch.rand(8, 4)
    for width, start in ((24, 8), (24, 3), (20, 8)):  # aligned; a start that is not; strides that are not
        x = torch.rand(2, 5, width)[..., start : start + 8]
        assert_close(
            short_convolution(x, weight, backend="causal_conv1d"), short_convolution(x, weight, backend="reference")
        )


def test_what_causal_conv1d_does_not_take_is_refused(monkeypatch):
    fake_causal_conv1d(monkeypatch)
    x = torch.rand(1, 3, 8)
    with pytest.raises(RuntimeError, match="float64"):
        short_convolution(x.double(), torch.rand(8, 4).double(), backend="causal_conv1d")
    with pytest.raises(RuntimeError, match="2 to 4 tokens, got a size of 5"):
        short_convolution(x, torch.rand(8, 5), backend="causal_conv1d")


def test_sizes_that_do_not_fit_are_refused():
    x, weight = torch.rand(1, 3, 8), torch.rand(8, 4)
    with pytest.raises(ValueError, match=r"weight \[channels, size\], got \[1, 3, 8\] and \[4, 8\]"):
        short_convolution(x, weight.mT)
    with pytest.raises(ValueError, match=r"state must be .* = \[1, 3, 8\], got \[1, 4, 8\]"):
        short_convolution(x, weight, state=torch.rand(1, 4, 8))
