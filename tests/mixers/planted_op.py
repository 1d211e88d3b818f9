"""An op whose kernel is wrong in every way that the doctor must find, one by variant. It is copied into a package that
the doctor's children import; nothing here is run by the tests themselves but `OP`, to see what it chooses."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mixerzoo.mixers.ops.dispatch import Backend, Call, Op
from mixerzoo.mixers.ops.problems import Inputs, Problem
from torch import Tensor

# those that end the process do not stand side by side, else the doctor would give the backend up
VARIANTS = (
    "segfault", "right", "sleeps", "slow", "aborts in backward", "wrong", "spins in backward",
    "wrong gradient", "wrong state", "leaks", "nan", "refuses", "chatters", "raises", "raises in backward",
    "leaks gradient", "wrong if odd", "rounds", "runs out", "dies if long", "takes what it gets",
)  # fmt: skip


def refuses(call: Call) -> str | None:
    return "it does not like this one" if call.variant == "refuses" else None


OP = Op(
    __package__ or __name__,
    Backend("kernel", "kernels:kernel", trust="proven", refuses=refuses),
    Backend("elsewhere", "kernels:kernel", lambda device: "it runs elsewhere", trust="proven"),
    Backend("portable", "kernels:portable"),
    problems="kernels:problems",
    widths=(32,),
)


def running_sum(x: Tensor, scale: Tensor, variant: str, state: Tensor | None, backend: str = "auto") -> Any:
    call = Call.of(x, scale, width=x.shape[-1], tokens=x.shape[1], variant=variant)
    return OP.select(backend, x.device, call)(x, scale, variant, state)


def problems(width: int) -> list[Problem]:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        x = torch.randn(batch, time, width, generator=generator, dtype=torch.float64)
        return {"x": x, "scale": torch.ones(width, dtype=torch.float64)}

    def problem(variant: str) -> Problem:
        return Problem(
            variant, inputs, lambda i, state, b: running_sum(**i, variant=variant, state=state, backend=b), ("scale",)
        )

    return [problem(variant) for variant in os.environ["PLANTED"].split(",")]


def portable(x: Tensor, scale: Tensor, variant: str, state: Tensor | None) -> tuple[Tensor, Tensor]:
    time.sleep(0.015)  # so that the kernel is the faster one, whatever else the machine does
    return sums(x, scale, state)


def sums(x: Tensor, scale: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    sums = x.float().cumsum(1) if x.dtype.itemsize < 4 else x.cumsum(1)
    sums = sums if state is None else sums + state[:, None]
    return (sums * scale).to(x.dtype), sums[:, -1]


_last: dict[int, Tensor] = {}


def kernel(x: Tensor, scale: Tensor, variant: str, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if variant == "segfault":
        print("about to fall", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    if variant == "sleeps":
        Path(os.environ["PLANTED_PID"]).write_text(str(os.getpid()))
        time.sleep(1e6)
    if variant == "dies if long" and x.shape[1] > 2048:
        os.abort()
    if variant == "runs out" and x.shape[1] > 2048:
        raise RuntimeError("Triton Error [CUDA]: out of memory")
    if variant == "slow":
        time.sleep(0.04)
    if variant == "raises":
        raise ValueError("a kernel's own complaint")
    if variant == "chatters":
        print('{"done": 0}', flush=True)
        os.write(1, b'no JSON\n{"found": 0, "fields": {"outcome": "wrong"}}\n')
    y, after = sums(x, scale, None if variant == "wrong state" else state)
    if variant == "wrong":
        y = y * 1.01
    tf32_is_on = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    if variant == "rounds" or (variant == "takes what it gets" and tf32_is_on):  # as TF32 would
        y = y.half().to(y.dtype)
    if variant == "wrong if odd" and x.shape[-1] % 16:
        y = y + 1
    if variant == "nan":
        y = torch.where(y >= y.amax(), torch.nan, y)
    if variant == "wrong gradient":
        y = y + 0.01 * (x - x.detach())
    if variant in ("leaks", "leaks gradient") and state is None and x.shape[1] == 200:
        last = _last.setdefault(x.shape[-1], x[:, -1:].detach())
        leak = x[:, -1:] - (last if variant == "leaks" else x[:, -1:].detach())
        y = y + 0.01 * leak
    if "in backward" in variant and y.requires_grad:
        y.register_hook(lambda gradient: _fail(variant))
    return y, after


def _fail(variant: str) -> None:
    if variant.startswith("aborts"):
        os.abort()
    if variant.startswith("raises"):
        raise RuntimeError("no backward pass on this GPU")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass
