"""The softmax kernels of flash-linear-attention, through our adapters, against the definitions, gradients included.

test_fla_attention.py runs this file with TRITON_INTERPRET=1 in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.attention import attention
from mixerzoo.mixers.ops.attention import fla as attention_adapter
from mixerzoo.mixers.ops.block_attention import block_attention
from mixerzoo.mixers.ops.block_attention import fla as block_adapter
from mixerzoo.mixers.ops.path_attention import fla as path_adapter
from mixerzoo.mixers.ops.path_attention import path_attention
from mixerzoo.mixers.ops.stick_breaking import fla as stick_adapter
from mixerzoo.mixers.ops.stick_breaking import stick_breaking
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.autotuner import Autotuner

TIME = 70  # more than one block of each kernel, the last of them not full
SCALE = 0.3


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no clock for kernels in the interpreter: the first configuration is as good as any."""
    monkeypatch.setattr(Autotuner, "_bench", lambda self, *args, config, **options: 1.0)


def tokens(heads: int, *size: int, seed: int, time: int = TIME) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, time, heads, *size, generator=generator)


def qkv(heads: int = 4, kv_heads: int = 2, d_head: int = 16, d_value: int = 16, time: int = TIME) -> list[Tensor]:
    sizes = ((heads, d_head), (kv_heads, d_head), (kv_heads, d_value))
    return [tokens(*size, seed=i, time=time).requires_grad_() for i, size in enumerate(sizes)]


def agree(theirs: Callable[..., Tensor], ours: Callable[..., Tensor], inputs: list[Tensor], tolerance: float) -> None:
    outputs = theirs(*inputs), ours(*inputs)
    weight = torch.randn(outputs[1].shape, generator=torch.Generator().manual_seed(9))
    results = [[y, *torch.autograd.grad((y * weight).sum(), inputs)] for y in outputs]
    for found, expected in zip(*results):
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("variant", ["", "forget+sinks+window"])
def test_attention(variant: str) -> None:
    window = 7 if "window" in variant else None
    given: dict[str, Tensor] = {}
    if "sinks" in variant:
        given["sinks"] = torch.tensor([0.5, -1.0, 0.0, 2.0], requires_grad=True)
    if "forget" in variant:
        given["log_forget"] = F.logsigmoid(tokens(4, seed=3)).requires_grad_()

    def theirs(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        parts = dict(zip(given, more))
        return attention_adapter.attention(q, k, v, window, parts.get("sinks"), parts.get("log_forget"), SCALE)

    def ours(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        options: dict[str, Any] = {"window": window, "scale": SCALE, "backend": "reference"}
        return attention(q, k, v, **dict(zip(given, more)), **options)

    agree(theirs, ours, [*qkv(d_value=24), *given.values()], 1e-5)


@pytest.mark.parametrize(("attend_current", "remainder", "time"), [(False, True, TIME), (True, False, 20)])
def test_stick_breaking(attend_current: bool, remainder: bool, time: int) -> None:
    how = {"attend_current": attend_current, "remainder": remainder, "scale": SCALE}
    agree(
        lambda *tensors: stick_adapter.stick_breaking(*tensors, **how),
        lambda *tensors: stick_breaking(*tensors, **how, backend="reference"),
        qkv(2, 1, time=time),
        1e-5,
    )


def test_path_attention() -> None:
    directions = F.normalize(tokens(1, 16, seed=4), dim=-1).requires_grad_()
    beta = (2 * tokens(1, seed=5).sigmoid()).requires_grad_()
    log_forget = F.logsigmoid(tokens(2, seed=6) + 2).requires_grad_()

    def theirs(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor, log_forget: Tensor) -> Tensor:
        return path_adapter.path_attention(q, k, v, w, b, log_forget, SCALE, 16, None, False)[0]

    def ours(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor, log_forget: Tensor) -> Tensor:
        return path_attention(q, k, v, w, b, log_forget=log_forget, scale=SCALE, backend="reference")[0]

    # fla rounds directions to float16
    agree(theirs, ours, [*qkv(2, 1), directions, beta, log_forget], 1e-3)


def test_block_attention() -> None:
    block_size, time = 16, torch.arange(TIME)
    own = (time // block_size)[None, :, None, None].expand(1, TIME, 1, 1)
    earlier = (torch.rand(1, TIME, 1, 1, generator=torch.Generator().manual_seed(7)) * own).long()
    blocks = torch.cat([own, torch.where(own > 0, earlier, -1)], dim=-1)
    agree(
        lambda *tensors: block_adapter.block_attention(*tensors, blocks, block_size),
        lambda *tensors: block_attention(*tensors, blocks, block_size=block_size, backend="reference"),
        qkv(16, 1),
        1e-5,
    )
