"""Choosing the kind of device that a run is made on."""

from __future__ import annotations


def choose_device(name: str, only: str | None = None) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where it is available. only: the one kind that the suite is made for.

    Raises `ValueError` for what this machine lacks, or the suite is not made for.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}; give auto, cpu or cuda")
    available = torch.cuda.is_available()
    if only is not None and name not in ("auto", only):
        raise ValueError(f"this suite measures on {only}, and says nothing about {name}; leave out --device")
    if only == "cuda" and not available:
        raise ValueError("this suite measures a CUDA device, and none can be used here")
    if name == "cuda" and not available:
        raise ValueError("no CUDA device can be used here; give --device cpu")
    return only or ("cuda" if available and name != "cpu" else "cpu")
