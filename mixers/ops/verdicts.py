"""What `mixerzoo doctor` found out about the backends of ops on this machine, kept in the user's cache directory."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MIXERZOO_CACHE"
FORMAT = 1
# Tokens at which backends are timed, by the class of lengths that the time then stands for.
LENGTHS = {"one": 1, "short": 256, "middle": 2048, "long": 16384}
LEAST_CLASS = 16

Outcome = Literal["right", "wrong", "crashed", "timed out", "refused"]


class Key(NamedTuple):
    """What a verdict on a backend of an op is about. dtype: `float32`, ...; width: see `width_class`."""

    variant: str
    dtype: str
    width: int


def width_class(width: int) -> int:
    """Head sizes that one verdict stands for: up to this power of two, and more than half of it; at least 16."""
    return max(LEAST_CLASS, 1 << (width - 1).bit_length())


def length_class(tokens: int) -> str:
    """Which of `LENGTHS` stands for a call of so many tokens."""
    return "one" if tokens == 1 else "short" if tokens < 1024 else "middle" if tokens < 8192 else "long"


class Error(BaseModel):
    """A relative error and the largest that passes."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for nan


class Verdict(BaseModel):
    """What was found out about one backend.

    source: hash of the op's code. libraries: versions of what the backend calls. outcome: of everything but the
    backward pass, with `detail` where it is not `right`; backward: of the backward pass, None where it was not tried.
    errors: by what was compared: `forward`, `backward`, `state`, `documents`.
    seconds: of a call by class of length, and `forward` or `train` (forward and backward).
    """

    model_config = ConfigDict(frozen=True)

    op: str
    backend: str
    variant: str
    dtype: str
    width: int
    source: str
    libraries: dict[str, str] = {}
    outcome: Outcome
    backward: Outcome | None = None
    detail: str = ""
    errors: dict[str, Error] = {}
    seconds: dict[str, dict[str, float]] = {}

    @property
    def key(self) -> Key:
        return Key(self.variant, self.dtype, self.width)

    def holds(self, source: str, libraries: Mapping[str, str]) -> bool:
        """Whether it was found out about this very code."""
        return self.source == source and self.libraries == dict(libraries)

    def trusted(self, gradient: bool) -> bool:
        """Whether the backend gave right results, and right gradients if they are wanted."""
        return self.outcome == "right" and (self.backward == "right" or not gradient)


def fastest(candidates: Sequence[Verdict], tokens: int, gradient: bool) -> str | None:
    """The backend that is fastest in calls of so many tokens, or of the nearest shorter length that was timed."""
    kind = "train" if gradient else "forward"
    names = list(LENGTHS)
    for length in reversed(names[: names.index(length_class(tokens)) + 1]):
        seconds = {v.backend: v.seconds[length][kind] for v in candidates if kind in v.seconds.get(length, {})}
        if seconds:  # one that has no time here where others do failed at this length
            return min(seconds, key=seconds.__getitem__)
    return None


class Verdicts:
    """The verdicts of one device, kept in one file of JSON for every combination of driver and versions."""

    def __init__(self, device: torch.device) -> None:
        self.machine = describe(device)
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "verdicts" / f"{digest}.json"
        self.all = self._read()
        self._by_case: dict[tuple[str, Key], dict[str, Verdict]] = {}
        for v in self.all:
            self._by_case.setdefault((v.op, v.key), {})[v.backend] = v

    def find(self, op: str, key: Key) -> dict[str, Verdict]:
        """The verdict on each backend of `op` about `key`, by name."""
        return self._by_case.get((op, key), {})

    def keep(self, new: Iterable[Verdict]) -> None:
        """Add `new` ones to the file; each replaces what was said of the same. `of` finds them from then on."""
        mine = {(v.op, v.backend, v.key): v for v in [*self._read(), *new]}
        content = {
            "format": FORMAT,
            "machine": self.machine,
            "verdicts": [v.model_dump(mode="json") for v in mine.values()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # replaced whole: another process may be reading it
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, self.path)
        reload()

    def _read(self) -> list[Verdict]:
        try:
            content = json.loads(self.path.read_text())
            return [Verdict.model_validate(v) for v in content["verdicts"]] if content["format"] == FORMAT else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            logger.warning("%s cannot be read and is ignored: %s", self.path, error)
            return []


def cache_folder() -> Path:
    """Where verdicts lie: the user's cache directory, or what the variable MIXERZOO_CACHE names."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("mixerzoo"))


_generation = 0


def generation() -> int:
    """A number that changes when verdicts do."""
    return _generation


def reload() -> None:
    """Look into the files again at the next question."""
    global _generation
    _generation += 1
    of.cache_clear()


@functools.cache
def of(device: torch.device) -> Verdicts:
    """What is known about `device`."""
    return Verdicts(device)


def describe(device: torch.device) -> dict[str, str | None]:
    """What a verdict may depend on beside the code: the device, its driver, torch, triton and the platform."""
    found: dict[str, str | None] = {
        "device": platform.processor() or platform.machine(),
        "platform": platform.system(),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found |= {
            "device": torch.cuda.get_device_name(device),
            "capability": capability,
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    elif os.environ.get("TRITON_INTERPRET") == "1":
        found["triton"] = f"{found['triton']} interpreted"
    return found


def _driver() -> str | None:
    """The first line of what the NVIDIA driver says of itself; None where it does not."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
