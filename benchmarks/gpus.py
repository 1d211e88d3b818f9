"""The NVIDIA GPUs of this machine, as `nvidia-smi` and torch know them, and what holds their clocks down."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from .device import kind_of

Gpu = dict[str, Any]

_TEXTS = {"uuid": "uuid", "name": "name", "driver_version": "driver", "persistence_mode": "persistence_mode"}
_NUMBERS = {
    "index": "index",
    "memory.total": "memory_mib",
    "temperature.gpu": "temperature_celsius",
    "power.draw": "power_watts",
    "power.limit": "power_limit_watts",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
}
# NVML's bits of the reasons why a clock is not at its highest
_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
_HOLD_DOWN = ("sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
_COUNTED = tuple(reason for reason in _HOLD_DOWN if reason != "hw_slowdown")
_COUNTERS = {f"clocks_event_reasons_counters.{reason}": reason for reason in _COUNTED}
# What drivers call the reasons, newest first; a field that a driver does not know makes the whole query fail.
_REASON_FIELDS: tuple[tuple[str, ...], ...] = (
    ("clocks_event_reasons.active", *_COUNTERS),
    ("clocks_event_reasons.active",),
    ("clocks_throttle_reasons.active",),
    (),
)
MOMENTARY = ("temperature_celsius", "power_watts", "sm_clock_mhz", "memory_clock_mhz", "clock_reasons", "held_down_us")


def gpus() -> list[Gpu]:
    """Every GPU that `nvidia-smi` lists; empty without it. What cannot be read is None.

    MiB, MHz, watts and degrees Celsius; `clock_reasons`: why the clock is not at its highest now; `held_down_us`:
    microseconds since the driver was loaded in which a reason held it down, where the driver counts them.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    for reasons in _REASON_FIELDS:
        fields = [*_TEXTS, *_NUMBERS, *reasons]
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        rows = list(csv.reader((output_of(command) or "").splitlines(), skipinitialspace=True))
        if rows and all(len(row) == len(fields) for row in rows):
            return [_read(dict(zip(fields, row))) for row in rows]
    return []


def used_gpu(device: str) -> Gpu | None:
    """The GPU that `device` means, as torch knows it; None where there is none. uuid: as `nvidia-smi` writes it."""
    import torch

    if kind_of(device) != "cuda" or not torch.cuda.is_available():
        return None
    index = torch.device(device).index or 0
    found = torch.cuda.get_device_properties(index)
    uuid = str(found.uuid)
    return {
        "index": index,
        "uuid": uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}",
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
    }


def held_down(before: Sequence[Gpu], after: Sequence[Gpu], uuid: str | None) -> list[str]:
    """What held the clock of the GPU `uuid` down at either moment or, where the driver counts, between them.

    Of any GPU, if `uuid` is not among them: a part of a GPU (MIG) has one of its own.
    """
    known = uuid in {gpu["uuid"] for gpu in after}
    earlier = {gpu["uuid"]: gpu.get("held_down_us") or {} for gpu in before}
    found: set[str] = set()
    for gpu in [*before, *after]:
        if gpu["uuid"] == uuid or not known:
            found.update(gpu.get("clock_reasons") or ())
    for gpu in after:
        if gpu["uuid"] == uuid or not known:
            counted, base = gpu.get("held_down_us") or {}, earlier.get(gpu["uuid"], {})
            found |= {reason for reason, us in counted.items() if us > base.get(reason, us)}
    return [reason for reason in _HOLD_DOWN if reason in found]


def output_of(command: list[str]) -> str | None:
    """What a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(row: dict[str, str]) -> Gpu:
    """One line of `nvidia-smi`, by the names of its fields."""
    gpu: Gpu = {name: _text(row[field]) for field, name in _TEXTS.items()}
    gpu |= {name: _number(row[field]) for field, name in _NUMBERS.items()}
    bits = next((_text(row[field]) for field in row if field.endswith("_reasons.active")), None)
    gpu["clock_reasons"] = None if bits is None else _reasons(bits)
    if any(field in row for field in _COUNTERS):
        counted = {reason: _number(row[field]) for field, reason in _COUNTERS.items()}
        gpu["held_down_us"] = {reason: us for reason, us in counted.items() if us is not None}
    return gpu


def _reasons(bits: str) -> list[str] | None:
    try:
        mask = int(bits, 16)
    except ValueError:
        return None
    return [name for bit, name in _REASONS.items() if mask & bit]


def _text(value: str) -> str | None:
    return None if not value or value == "N/A" or value.startswith("[") else value  # [N/A], [Not Supported]


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number
