"""Slot attention in chunks is the definition, also where slots forget abruptly; both are fla-core's naive function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.slot_attention import slot_attention


@pytest.mark.parametrize(("time", "groups", "chunk_size"), [(50, 1, 16), (1, 2, 16), (37, 2, 64), (70, 1, 5)])
@pytest.mark.parametrize("strength", [0.1, 60.0])
def test_chunks_are_the_definition(time: int, groups: int, chunk_size: int, strength: float) -> None:
    torch.manual_seed(0)
    sizes = ((time, 2 * groups, 8), (time, 2, 8), (time, 2, 6), (time, 2, 5))
    inputs = [torch.randn(2, *size, dtype=torch.float64) for size in sizes]
    inputs.append(-strength * torch.rand(2, time, 2, 5, dtype=torch.float64) ** 4)
    inputs += [torch.randn(2, 2, 5, d, dtype=torch.float64) for d in (8, 6)]
    inputs = [x.requires_grad_() for x in inputs]
    found = []
    for backend in ("reference", "chunked"):
        *given, keys, values = inputs
        y, state = slot_attention(
            *given, state=(keys, values), chunk_size=chunk_size, return_state=True, backend=backend
        )
        assert state is not None
        loss = y.square().sum() + state[0].square().sum() + state[1].square().sum()
        found.append((y, *state, *torch.autograd.grad(loss, inputs)))
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_long_sequences_are_worked_on_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixerzoo.mixers.ops.slot_attention import chunked

    torch.manual_seed(0)
    q, k, v, w = (torch.randn(1, 100, 2, 8, dtype=torch.float64) for _ in range(4))
    decay = -torch.rand_like(w)
    whole, _ = slot_attention(q, k, v, w, decay, chunk_size=8)
    monkeypatch.setattr(chunked, "ELEMENTS", 2 * 8 * 24)
    torch.testing.assert_close(slot_attention(q, k, v, w, decay, chunk_size=8)[0], whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_naive_function_of_fla(oracle: Any, scale: float | None) -> None:
    from fla.ops.gsa.naive import naive_recurrent_gsa

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 50, 2, 8) for _ in range(3))
    writes, log_decay = torch.rand(2, 50, 2, 6), -torch.rand(2, 50, 2, 6)
    expected, _ = naive_recurrent_gsa(q, k, v, writes, log_decay, scale)
    y, _ = slot_attention(q, k, v, writes, log_decay, scale=scale)
    oracle("gated_slot_attention", "fla-core naive_recurrent_gsa", y, expected)


def test_what_does_not_fit() -> None:
    x, w = torch.randn(1, 4, 2, 8), torch.rand(1, 4, 2, 5)
    with pytest.raises(ValueError, match=r"queries must be .* a multiple of heads = 2.* got \[1, 4, 3, 8\]"):
        slot_attention(torch.randn(1, 4, 3, 8), x, x, w, -w)
    with pytest.raises(ValueError, match=r"log_decay must have the shape of writes, \[1, 4, 2, 5\]"):
        slot_attention(x, x, x, w, -w[..., :1])
    with pytest.raises(ValueError, match="state must be tensors of shapes"):
        slot_attention(x, x, x, w, -w, state=(w, w))
