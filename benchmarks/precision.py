"""In which precision a model computes: bfloat16 on a GPU, float32 on a CPU, unless it is said; and whether TF32 may
stand in for float32."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def resolve(precision: Precision, device: torch.device | str) -> Literal["float32", "bfloat16"]:
    """What `auto` means on a device; the others are what they are."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.device(device).type == "cuda" else "float32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model of float32 parameters computes in `precision`."""
    if resolve(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def allows_tf32(switch: bool | Literal["auto"], precision: Precision, device: torch.device | str) -> bool:
    """Whether a case may use TF32. `auto`: exactly where it computes in bfloat16 on a CUDA device anyway."""
    if torch.device(device).type != "cuda":
        return False
    return resolve(precision, device) == "bfloat16" if switch == "auto" else switch
