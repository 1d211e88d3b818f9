"""Choosing the kind of device that a run is made on."""

from __future__ import annotations


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where it is available. Raises `ValueError` for what this machine lacks."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}; give auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("no CUDA device can be used here; give --device cpu")
    return "cuda" if available and name != "cpu" else "cpu"
