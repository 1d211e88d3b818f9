"""The other ops, forward and backward, at one size each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops import attention, recurrence, ttt
from torch.nn import functional as F

from .conftest import backends

BATCH, TIME, HEADS, WIDTH = 2, 512, 4, 32
SIZE = (BATCH, TIME, HEADS, WIDTH)


def step(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output.square().sum(), inputs)


@pytest.mark.parametrize("backend", backends(attention.OP))
def test_attention(normal: Any, timed: Any, backend: str) -> None:
    q, k, v = (normal(*SIZE).requires_grad_() for _ in range(3))
    timed(lambda: step(attention.attention(q, k, v, backend=backend), q, k, v))


@pytest.mark.parametrize("backend", backends(recurrence.OP))
def test_linear_attention(normal: Any, timed: Any, backend: str) -> None:
    q, k, v = normal(*SIZE).exp().requires_grad_(), normal(*SIZE).exp().requires_grad_(), normal(*SIZE).requires_grad_()
    timed(lambda: step(recurrence.linear_recurrence(q, k, v, normaliser=True, backend=backend)[0], q, k, v))


@pytest.mark.parametrize("backend", backends(recurrence.OP))
def test_gated_delta_rule(normal: Any, timed: Any, backend: str) -> None:
    q, k = (F.normalize(normal(*SIZE), dim=-1).requires_grad_() for _ in range(2))
    v, log_decay, beta = normal(*SIZE).requires_grad_(), -normal(*SIZE[:3]).exp(), normal(*SIZE[:3]).sigmoid()
    given = {"log_decay": log_decay, "beta": beta, "backend": backend}
    timed(lambda: step(recurrence.linear_recurrence(q, k, v, **given)[0], q, k, v))


@pytest.mark.parametrize("backend", backends(ttt.OP))
def test_ttt(normal: Any, timed: Any, backend: str) -> None:
    q, k, v = (normal(*SIZE).requires_grad_() for _ in range(3))
    steps = normal(*SIZE[:3]).sigmoid() / WIDTH
    fixed: dict[str, Any] = {
        "position_scale": 1 / torch.arange(1, 17, device=q.device),
        "norm_weight": torch.ones(HEADS, WIDTH, device=q.device),
        "norm_bias": torch.zeros(HEADS, WIDTH, device=q.device),
        "weights": ((0.02 * normal(HEADS, WIDTH, WIDTH), torch.zeros(HEADS, 1, WIDTH, device=q.device)),),
    }
    timed(lambda: step(ttt.ttt(q, k, v, steps, **fixed, backend=backend)[0], q, k, v))
