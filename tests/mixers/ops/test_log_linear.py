"""Log-linear attention: chunks and any cut are the definition, and the definition is fla-core's naive function."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.log_linear import log_linear_attention
from torch import Tensor


def random_inputs(time: int, levels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    q, k = torch.randn(2, time, 1, 4, dtype=dtype), torch.randn(2, time, 1, 4, dtype=dtype)
    v, decay = torch.randn(2, time, 2, 3, dtype=dtype), -(torch.rand(2, time, 2, dtype=dtype) ** 2)
    return [x.requires_grad_() for x in (q, k, v, decay, torch.rand(2, time, 2, levels, dtype=dtype))]


@pytest.mark.parametrize("levels", [2, 3, 5, 15])
@pytest.mark.parametrize("chunk_size", [1, 6, 16])
def test_chunks_and_any_cut_are_the_definition(levels: int, chunk_size: int) -> None:
    inputs = random_inputs(83, levels)
    found = []
    for backend in ("reference", "chunked"):
        y, state = log_linear_attention(*inputs, return_state=True, chunk_size=chunk_size, backend=backend)
        assert state is not None
        found.append((y, state, *torch.autograd.grad(y.square().sum() + state.square().sum(), inputs)))
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)
    cuts = sorted(random.Random(levels).sample(range(1, 83), 6))
    ys, state = [], None
    with torch.no_grad():
        for first, last in zip([0, *cuts], [*cuts, 83]):
            piece = [x[:, first:last] for x in inputs]
            y, state = log_linear_attention(
                *piece, position=first, state=state, return_state=True, chunk_size=chunk_size
            )
            ys.append(y)
    torch.testing.assert_close(torch.cat(ys, dim=1), found[0][0].detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(state, found[0][1].detach(), atol=1e-9, rtol=1e-9)


def test_the_naive_function_of_fla(oracle: Any) -> None:
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn

    inputs = [x.detach() for x in random_inputs(64, 7, torch.float32)]
    y, _ = log_linear_attention(*inputs, scale=1.0, chunk_size=16)
    oracle("log_linear_attention", "fla-core naive_log_linear_attn", y, naive_log_linear_attn(*inputs))


def test_what_does_not_fit() -> None:
    inputs = random_inputs(5, 4)
    with pytest.raises(
        ValueError, match=r"state at position 5 must be of shape \[2, 3, 2, 4, 3\], got \[2, 0, 2, 4, 3\]"
    ):
        log_linear_attention(*inputs, position=5)
    with pytest.raises(ValueError, match=r"level_scales must be \[2, 5, 2\] \+ \[levels >= 2\]"):
        log_linear_attention(*inputs[:4], inputs[4][..., :1])
