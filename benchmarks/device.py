"""Choosing the device that a run is made on: `cpu`, `cuda`, or one of several GPUs, `cuda:1`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def kind_of(device: str) -> str:
    """`cpu` or `cuda`, whichever of them it is."""
    return device.partition(":")[0]


def choose_device(name: str, only: str | None = None, *, elsewhere: bool = False) -> str:
    """The device that `name` means here: `cpu`, `cuda` (the first) or `cuda:N`; `auto` takes CUDA where it is.

    only: the one kind that the suite is made for. elsewhere: cases run on other machines; whether those have CUDA
    cannot be known, so `cuda` is taken where it is asked for. Raises `ValueError` for what this machine lacks, or the
    suite is not made for.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"unknown device {name!r}; give auto, cpu, cuda, or cuda:N for one of several")
    kind = kind_of(name)
    available = torch.cuda.is_available()
    if only is not None and kind not in ("auto", only):
        raise ValueError(f"this suite measures on {only}, and says nothing about {kind}; leave out --device")
    if elsewhere and "cuda" in (name, only):
        return "cuda"
    if only == "cuda" and not available:
        raise ValueError("this suite measures a CUDA device, and none can be used here")
    if kind == "cuda" and not available:
        raise ValueError("no CUDA device can be used here; give --device cpu")
    if ":" in name:
        count = torch.cuda.device_count()
        if int(name.partition(":")[2]) >= count:
            raise ValueError(f"there is no device {name!r} here, only cuda:0{f' to cuda:{count - 1}' * (count > 1)}")
        return name
    return only or ("cuda" if available and kind != "cpu" else "cpu")


def usable_here(device: str) -> bool:
    """Whether this machine has it: one that only submits jobs may have no GPU."""
    if kind_of(device) != "cuda":
        return True
    import torch

    return torch.cuda.is_available()


def make_current(device: torch.device) -> None:
    """For the rest of the process, launch kernels on this device, if it is one of several GPUs.

    Triton launches on the current device, wherever the tensors are.
    """
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
