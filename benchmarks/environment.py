"""Where a run was made: machine, software, source and command, as far as they can be read."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("mixerzoo", "torch", "numpy", "triton", "fla-core", "flash-linear-attention", "flash-attn", "safetensors")
_GPU_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory_mib",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.limit": "power_limit_watts",
}


def collect_environment(*, device: str, jobs: int, threads: int, command: list[str] | None = None) -> dict[str, Any]:
    """What `environment.json` says; sizes in bytes, clocks in MHz. What cannot be read is None.

    jobs: cases at a time. threads: those of a case that runs alone. command: what was typed, default `sys.argv`.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command or ["mixerzoo", *sys.argv[1:]]),
        "device": device,
        "jobs": jobs,
        "threads": threads,
        "machine": machine(),
        "gpus": gpus(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "source": source(),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """What changed between two environments and matters to a measurement: name -> [old, new]."""
    watched = ("machine", "gpus", "python", "packages", "source", "threads")
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


def usable_cores() -> int:
    """Physical cores that this process may use; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def gpus() -> list[dict[str, Any]]:
    """Every NVIDIA GPU that `nvidia-smi` lists: name, driver, memory, clocks now and at most; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    output = _output(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    rows = csv.reader((output or "").splitlines(), skipinitialspace=True)
    return [{name: _number(v) for name, v in zip(_GPU_FIELDS.values(), row)} for row in rows]


def source() -> dict[str, Any] | None:
    """Commit of the source tree and whether it has changes; None where mixerzoo does not run from a git checkout."""
    root = Path(__file__).resolve().parents[1]
    top = _output(["git", "-C", str(root), "rev-parse", "--show-toplevel"])
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    # an installed copy may lie inside somebody else's repository: that commit is not ours
    if not top or not commit or Path(top).resolve() != root:
        return None
    return {"commit": commit, "dirty": bool(_output(["git", "-C", str(root), "status", "--porcelain"]))}


def _lasting(value: Any) -> Any:
    """Without the clocks, which change from moment to moment."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in ("cpu_mhz", "sm_clock_mhz", "memory_clock_mhz")}
    return [_lasting(v) for v in value] if isinstance(value, list) else value


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


def _output(command: list[str]) -> str | None:
    """What a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text if text and not text.startswith("[") else None  # [N/A]
