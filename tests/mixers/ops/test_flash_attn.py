"""The adapters to FlashAttention 2 and 3, on functions with the packages' signatures that compute the definition."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.attention import OP, attention
from mixerzoo.mixers.ops.dispatch import Call
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: tuple[int, int]) -> Tensor:
    """What the kernels check of their arguments, and then the definition: window_size counts keys left and right."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in HALF
    assert q.shape[3] == k.shape[3] == v.shape[3] <= 256 and q.shape[3] % 8 == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v)) and q.shape[2] % k.shape[2] == 0
    assert causal and window in ((-1, -1), (window[0], 0))
    doubles = (x.double() for x in (q, k, v))
    y = attention(*doubles, window=None if window[0] < 0 else window[0] + 1, scale=scale, backend="reference")
    return y.to(q.dtype)


# flash_attn.flash_attn_interface, 2.8.3
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    assert dropout_p == softcap == 0 and alibi_slopes is None and not return_attn_probs
    return definition(q, k, v, softmax_scale, causal, window_size)


# hopper/flash_attn_interface.py; until July 2025 it returned the normaliser as well
def flash_attn_3_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor:
    assert qv is None and q_descale is None and attention_chunk == softcap == 0
    return definition(q, k, v, softmax_scale, causal, window_size)


def older_flash_attn_3_func(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    y = flash_attn_3_func(*args, **options)
    return y, torch.zeros(len(y), y.shape[2], y.shape[1])


@pytest.fixture(params=["flash_attn", "flash_attn_3", "flash_attn_3, older"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend whose package is a stand-in that runs anywhere."""
    name = request.param.partition(",")[0]
    module = types.ModuleType("flash_attn" if name == "flash_attn" else "flash_attn_interface")
    functions = (flash_attn_func, flash_attn_3_func, older_flash_attn_3_func)
    module.flash_attn_func = functions[request.param.count("3") + request.param.count("older")]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(OP.backends, name, replace(OP.backends[name], why_not=lambda device: None))
    return name


def qkv(time: int, key_time: int, d_head: int, d_value: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)
    sizes = ((time, 4, d_head), (key_time, 2, d_head), (key_time, 2, d_value))
    return [torch.randn(2, *size, generator=generator).to(dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("time", "key_time", "window"), [(9, 9, None), (5, 9, None), (1, 9, None), (9, 9, 3), (5, 9, 3)]
)
@pytest.mark.parametrize(("d_head", "d_value"), [(8, 8), (6, 10)])
def test_its_conventions_are_ours(backend, dtype, time, key_time, window, d_head, d_value):
    inputs = qkv(time, key_time, d_head, d_value, dtype)
    results = []
    for name in (backend, "reference"):
        # the definition in the precision of the stand-in
        y = attention(*(x if name == backend else x.double() for x in inputs), window=window, backend=name)
        results.append((y.double(), *torch.autograd.grad(y.double().square().sum(), inputs)))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert results[0][0].shape[-1] == d_value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "it takes float16 or bfloat16, got torch.float32; use autocast or 'sdpa'"),
        ({"d_head": 264}, "it takes heads of at most 256 features, got 264"),
        ({"sinks": torch.zeros(4)}, "it has no sinks"),
        ({"log_forget": torch.zeros(2, 9, 4), "sinks": torch.zeros(4)}, "it has no forget and no sinks"),
    ],
)
def test_what_it_cannot_do_is_refused(backend, changes, reason):
    d_head, dtype = changes.get("d_head", 8), changes.get("dtype", torch.bfloat16)
    extras = {name: value for name, value in changes.items() if isinstance(value, Tensor)}
    with pytest.raises(RuntimeError, match=f"backend '{backend}' of attention cannot run: {reason}; here run auto"):
        attention(*qkv(9, 9, d_head, d_head, dtype), **extras, backend=backend)


def test_only_a_hopper_gpu_runs_flash_attention_3(monkeypatch):
    gpu, why_not = torch.device("cuda"), OP.backends["flash_attn_3"].why_not
    assert "CUDA device" in why_not(torch.device("cpu")) and "not installed" in why_not(gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for capability, runs in (((9, 0), True), ((8, 0), False), ((10, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (why_not(gpu) is None) == runs


def test_a_machine_without_the_packages_says_so():
    for name in ("flash_attn", "flash_attn_3"):
        with pytest.raises(RuntimeError, match=rf"backend '{name}' of attention cannot run: .*CUDA"):
            attention(*qkv(3, 3, 8, 8, torch.bfloat16), backend=name)
        assert OP.backends[name].refuses(Call(torch.bfloat16, 128, 1, False, "cached")) is None
        assert OP.backends[name].refuses(Call(torch.float16, 256, 100, True, "window")) is None
