"""Scans and long convolutions at 4,096 and 32,768 tokens of a mixer of width 512, forward, beside causal attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops import diagonal_ssm, long_convolution, scan, selective_scan
from torch.nn import functional as F

WIDTH, INNER, D_STATE = 512, 1024, 16
times = pytest.mark.parametrize("time", [4096, 32768])


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("time", [4096])
def test_causal_attention(normal: Any, timed: Any, time: int) -> None:
    x = normal(1, 8, time, 64)
    timed(lambda: F.scaled_dot_product_attention(x, x, x, is_causal=True))


@times
def test_scan(normal: Any, timed: Any, time: int) -> None:
    decay, writes = normal(1, time, INNER).sigmoid(), normal(1, time, INNER)
    timed(lambda: scan.linear_scan(decay, writes))


@times
def test_scan_by_mambapy(normal: Any, timed: Any, time: int) -> None:
    pscan = pytest.importorskip("mambapy.pscan").pscan
    decay, writes = normal(1, time, INNER, 1).sigmoid(), normal(1, time, INNER, 1)
    timed(lambda: pscan(decay, writes))


def test_scan_and_gradients(normal: Any, timed: Any) -> None:
    decay, writes = (x.requires_grad_() for x in (normal(1, 4096, INNER).sigmoid(), normal(1, 4096, INNER)))

    def step() -> None:
        with torch.enable_grad():
            torch.autograd.grad(scan.linear_scan(decay, writes)[0].sum(), (decay, writes))

    timed(step)


@times
def test_selective_scan(normal: Any, timed: Any, time: int) -> None:
    x, step, A = normal(1, time, INNER), normal(1, time, INNER).exp() * 0.01, -normal(INNER, D_STATE).exp()
    B, C = normal(1, time, D_STATE), normal(1, time, D_STATE)
    timed(lambda: selective_scan.selective_scan(x, step, A, B, C))


@times
def test_diagonal_ssm(normal: Any, timed: Any, time: int) -> None:
    transition = torch.complex(-normal(WIDTH, 32).exp() * 0.01, normal(WIDTH, 32)).exp()
    x, readout = normal(1, time, WIDTH), torch.complex(normal(WIDTH, 32), normal(WIDTH, 32))
    timed(lambda: diagonal_ssm.diagonal_ssm(x, transition, readout))


@times
def test_long_convolution(normal: Any, timed: Any, time: int) -> None:
    x, filters = normal(1, time, WIDTH), normal(time, WIDTH)
    timed(lambda: long_convolution.long_convolution(x, filters))
