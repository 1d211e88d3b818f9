"""Where a run was made: machine, software, source and command, as far as they can be read."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from .device import kind_of
from .gpus import MOMENTARY, gpus, held_down, output_of, used_gpu

PACKAGES = ("mixerzoo", "torch", "numpy", "triton", "fla-core", "flash-linear-attention", "flash-attn", "safetensors")


def collect_environment(
    *, device: str, jobs: int, threads: int, tf32: bool | str = "auto", command: list[str] | None = None
) -> dict[str, Any]:
    """What `environment.json` says; sizes in bytes, clocks in MHz. What cannot be read is None.

    jobs: cases at a time. threads: those of a case that runs alone. tf32: the suite's switch. command: what was typed,
    default `sys.argv`.
    """
    return {
        "started": utc_time(),
        "command": shlex.join(command or ["mixerzoo", *sys.argv[1:]]),
        "device": device,
        "jobs": jobs,
        "threads": threads,
        "machine": machine(),
        **(_cuda(device, tf32) if kind_of(device) == "cuda" else {}),
        "gpus": gpus(),
        **software(),
        "source": source(),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """What changed between two environments and matters to a measurement: name -> [old, new]."""
    watched = ("machine", "gpu", "cuda", "tf32", "gpus", "python", "packages", "source", "threads")
    ours, theirs = ({k: _lasting(e.get(k)) for k in watched} for e in (new, old))
    return {name: [theirs[name], ours[name]] for name in watched if ours[name] != theirs[name]}


def machine() -> dict[str, Any]:
    """CPU, memory and operating system."""
    frequency = _cpu_frequency()
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": usable_cores(),
        "cpu_mhz": frequency[0],
        "max_cpu_mhz": frequency[1],
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
    }


def software() -> dict[str, Any]:
    """Python, and the packages that what is measured depends on."""
    return {"python": platform.python_version(), "packages": {name: _version(name) for name in PACKAGES}}


def usable_cores() -> int:
    """Physical cores that this process may use; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def end_of_start(now: dict[str, Any]) -> dict[str, Any]:
    """What is added when a start of a run ends that began with the environment `now`.

    On CUDA, the GPUs `before` and `after` it, and `held_down`: what held the clock of the one in use down meanwhile.
    """
    times = {"started": now["started"], "ended": utc_time()}
    if kind_of(now["device"]) != "cuda":
        return times
    after = gpus()
    reasons = held_down(now["gpus"], after, (now["gpu"] or {}).get("uuid"))
    moments = ([{k: gpu.get(k) for k in ("index", *MOMENTARY)} for gpu in found] for found in (now["gpus"], after))
    return {**times, **dict(zip(("before", "after"), moments)), "held_down": reasons}


def _cuda(device: str, switch: Any) -> dict[str, Any]:
    """The GPU in use, the versions that torch was built with, and where TF32 is allowed by the suite's `switch`."""
    import torch

    from .precision import allows_tf32

    return {
        "gpu": used_gpu(device),
        "cuda": {"version": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "tf32": {
            "switch": switch,
            "in_float32": allows_tf32(switch, "float32", device),
            "in_bfloat16": allows_tf32(switch, "bfloat16", device),
        },
    }


def source() -> dict[str, Any] | None:
    """Commit of the source tree and whether it has changes; None where mixerzoo does not run from a git checkout."""
    root = Path(__file__).resolve().parents[1]
    top = output_of(["git", "-C", str(root), "rev-parse", "--show-toplevel"])
    commit = output_of(["git", "-C", str(root), "rev-parse", "HEAD"])
    # an installed copy may lie inside somebody else's repository: that commit is not ours
    if not top or not commit or Path(top).resolve() != root:
        return None
    return {"commit": commit, "dirty": bool(output_of(["git", "-C", str(root), "status", "--porcelain"]))}


def _lasting(value: Any) -> Any:
    """Without clocks and temperatures, which change from moment to moment."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in ("cpu_mhz", *MOMENTARY)}
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def utc_time() -> str:
    """Now, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _cpu_frequency() -> tuple[float | None, float | None]:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        frequency = None
    return (round(frequency.current), round(frequency.max) or None) if frequency else (None, None)
