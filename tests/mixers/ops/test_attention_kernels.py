"""Which of PyTorch's kernels attention asks for, on tensors that pretend to be on CUDA, and which one is recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.attention import attention, sdpa
from mixerzoo.mixers.ops.dispatch import record_backends
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends import cuda
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.bfloat16, torch.float16)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"window": 40},
    {"sinks": True},
    {"log_forget": True},
    {"window": 40, "sinks": True, "log_forget": True},
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What `scaled_dot_product_attention` is called with, and whether it could take cuDNN."""
    found: list[dict[str, Any]] = []
    original = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        found.append({"query": query, "key": key, "value": value, "cudnn": cuda.cudnn_sdp_enabled(), **how})
        return original(query, key, value, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(sdpa, "_has_flash", lambda device: True)
    monkeypatch.setattr(sdpa, "on_cuda", lambda device: True)
    monkeypatch.setattr(sdpa, "_returns_normaliser", lambda *tensors: False)  # a kernel for the CPU
    with FakeTensorMode():
        yield found


def is_fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> bool:
    """The conditions of FlashAttention and of the memory-efficient kernel in PyTorch's sdp_utils.cpp, 2.6 to 2.13."""
    square = query.shape[2] == key.shape[2]
    sizes = {query.shape[3], key.shape[3], value.shape[3]}
    half = query.dtype in HALF
    if half and attn_mask is None and len(sizes) == 1 and max(sizes) <= 256 and (square or not is_causal):
        return True
    aligned = all(size % (8 if half else 4) == 0 for size in sizes)
    return query.shape[1] == key.shape[1] and query.shape[3] == key.shape[3] and aligned


def run(time: int, key_time: int, d_head: int, dtype: torch.dtype, variant: dict[str, Any]) -> Tensor:
    """Grouped attention on tensors that pretend to be on CUDA."""
    shapes = {"queries": (2, time, 6, d_head), "keys": (2, key_time, 2, d_head), "values": (2, key_time, 2, d_head)}
    tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    if "sinks" in variant:
        variant = variant | {"sinks": torch.empty(6)}
    if "log_forget" in variant:
        variant = variant | {"log_forget": torch.empty(2, key_time, 6)}
    return attention(**tensors, **variant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "+".join(v))
@pytest.mark.parametrize(("time", "key_time", "d_head"), [(90, 90, 64), (90, 90, 36), (90, 150, 256), (1, 150, 64)])
def test_no_call_on_cuda_writes_all_scores_down(calls, dtype, variant, time, key_time, d_head):
    assert run(time, key_time, d_head, dtype, variant).shape == (2, time, 6, d_head)
    assert calls
    for call in calls:
        arguments = {name: call[name] for name in inspect.signature(is_fused).parameters}
        assert is_fused(**arguments), {n: getattr(a, "shape", a) for n, a in call.items()}
        assert call["cudnn"] == call["is_causal"]  # one plan for every length that a cache has


@pytest.mark.parametrize(
    ("dtype", "d_head", "repeated"),
    [(torch.float32, 64, True), (torch.bfloat16, 64, False), (torch.float16, 264, True)],
)
def test_heads_are_repeated_only_where_flash_attention_cannot_group_them(calls, dtype, d_head, repeated):
    run(128, 128, d_head, dtype, {})
    (call,) = calls
    assert call["key"].shape[1] == call["value"].shape[1] == (6 if repeated else 2)
    assert call["enable_gqa"] != repeated


def test_what_needs_repeated_heads(monkeypatch):
    gpu, bf16 = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(sdpa, "_has_flash", lambda device: True)
    assert sdpa.needs_repeated_heads(gpu, torch.float32, 64) and sdpa.needs_repeated_heads(gpu, bf16, 264)
    assert not sdpa.needs_repeated_heads(gpu, bf16, 256) and not sdpa.needs_repeated_heads(gpu, torch.float16, 8)
    assert not sdpa.needs_repeated_heads(torch.device("cpu"), torch.float32, 64)
    monkeypatch.setattr(sdpa, "_has_flash", lambda device: False)  # compute capability 7.5
    assert sdpa.needs_repeated_heads(gpu, torch.float16, 64)


def test_cudnn_is_left_out_for_one_call_and_never_alone():
    assert cuda.cudnn_sdp_enabled()
    with sdpa.without_cudnn():
        assert not cuda.cudnn_sdp_enabled() and cuda.flash_sdp_enabled()
    assert cuda.cudnn_sdp_enabled()
    with pytest.raises(ZeroDivisionError), sdpa.without_cudnn():
        _ = 1 / 0
    assert cuda.cudnn_sdp_enabled()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), sdpa.without_cudnn():  # the user's wish, and nothing else is left
        assert cuda.cudnn_sdp_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        with sdpa.without_cudnn():
            assert not cuda.cudnn_sdp_enabled() and not cuda.flash_sdp_enabled()
        assert not cuda.cudnn_sdp_enabled()


def test_leaving_cudnn_out_does_not_break_a_compiled_graph():
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(next(node.args for node in graph.graph.nodes if "sdpa_kernel" in str(node.target))[0])
        return graph

    def attend(q: Tensor) -> Tensor:
        with sdpa.without_cudnn():
            return F.scaled_dot_product_attention(q, q, q)

    q = torch.randn(1, 2, 3, 4)
    for enabled in ({"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"}, {"MATH"}):
        torch.compiler.reset()
        with sdpa_kernel([getattr(SDPBackend, name) for name in (*enabled, "CUDNN_ATTENTION")]):
            y = torch.compile(attend, backend=backend, fullgraph=True)(q)
        torch.testing.assert_close(y, F.scaled_dot_product_attention(q, q, q))
        assert {kernel.args[0] for kernel in seen.pop()} == enabled
    assert cuda.cudnn_sdp_enabled()


@torch.no_grad()
def test_the_kernel_that_ran_is_recorded():
    q = torch.randn(1, 5, 2, 8)
    for time in (5, 3, 1):
        with record_backends() as record:
            attention(q[:, :time], q, q)
        assert record == {"attention": {"sdpa:flash"}}
    with sdpa_kernel(SDPBackend.MATH), record_backends() as outer:
        attention(q, q, q)
        with record_backends() as inner:
            attention(q, q, q, backend="reference")
            attention(q, q, q, backend="sdpa")
    assert outer == inner == {"attention": {"reference", "sdpa:math"}}


def test_the_kernel_is_asked_for_only_where_somebody_records(monkeypatch):
    asked = []
    choose = torch._fused_sdp_choice
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **how: asked.append(1) or choose(*args, **how))
    q = torch.randn(1, 5, 2, 8)
    attention(q, q, q)
    assert not asked
    with record_backends():
        attention(q, q, q)
    assert len(asked) == 1


def forgetting(time: int, dtype: torch.dtype, gradient: bool) -> tuple[Tensor, Tensor]:
    """What it gives, and the definition of it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1500, 2, 32, generator=generator).to(dtype).requires_grad_(gradient) for _ in range(3))
    log_forget = F.logsigmoid(4 * torch.randn(1, 1500, 2, generator=generator))
    y = attention(q[:, -time:], k, v, log_forget=log_forget)
    doubles = (x.double() for x in (q[:, -time:], k, v))
    return y, attention(*doubles, log_forget=log_forget.double(), backend="reference")


@pytest.mark.parametrize("time", [1500, 70])
def test_forgetting_stays_in_bfloat16_where_no_gradient_is_wanted(time, monkeypatch):
    dtypes, attend = [], F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        dtypes.append(query.dtype)
        return attend(query, key, value, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(sdpa, "on_cuda", lambda device: True)
    monkeypatch.setattr(sdpa, "_returns_normaliser", lambda *tensors: False)  # a kernel for the CPU
    errors = {}
    for gradient in (False, True):
        y, expected = forgetting(time, torch.bfloat16, gradient)
        errors[gradient] = ((y - expected).norm() / expected.norm()).item()
        assert set(dtypes) == {torch.float32 if gradient else torch.bfloat16}
        dtypes.clear()
    assert errors[False] < 1.3 * errors[True] < 3e-3  # though sums of gates are in the thousands
