"""The machine that a case runs on: what is said of it, and the right to work on it alone."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .device import kind_of
from .environment import machine as hardware
from .environment import software, source
from .gpus import used_gpu

FOLDER_VARIABLE = "MIXERZOO_LOCKS"


@dataclass(frozen=True)
class Machine:
    """Where a case ran. name: of the host. kind: speeds are compared within one only. details: see `this_machine`."""

    name: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@functools.cache
def this_machine(device: str) -> Machine:
    """This machine, as a case on `device` uses it; details: hardware, the GPU in use, Python, packages and source.

    The kind is made of the processor, the cores that may be used and, on CUDA, the GPU.
    """
    found = hardware()
    gpu = used_gpu(device) if kind_of(device) == "cuda" else None
    details = {**found, "gpu": gpu, **software(), "source": source()}
    return Machine(platform.node(), kind_of_machine(found, gpu), details)


def kind_of_machine(hardware: Mapping[str, Any], gpu: Mapping[str, Any] | None) -> str:
    """The kind of a machine, by what an environment says of it."""
    cores = hardware["usable_cores"]
    parts = [gpu["name"] if gpu else None, hardware["cpu"] or "unknown CPU", f"{cores} core{'s' * (cores != 1)}"]
    return ", ".join(filter(None, parts))


class MachineLock:
    """The right of one case to work on this machine: alone, or beside others that have the same right.

    Of all runs, whatever their folders: what is timed is not disturbed by the cases of another run. A case that wants
    the machine alone is not overtaken by those that would work beside others. The lock belongs to open files: whoever
    inherits them holds it as well, and the kernel takes it back when all of them are gone. They lie in the folder
    that the variable MIXERZOO_LOCKS names, by default one for all users of the machine; containers that share a GPU
    but no such folder are to be given one.
    """

    def __init__(self, device: str, exclusive: bool) -> None:
        self.exclusive, self._folder = exclusive, _folder()
        self._names = ["machine"]
        if kind_of(device) == "cuda" and (gpu := used_gpu(device)) is not None:
            self._names.append(gpu["uuid"])
        self._gate: int | None = None
        self._held: list[int] = []

    @property
    def filenos(self) -> list[int]:
        """The open files, for a child to inherit."""
        return list(self._held)

    def take(self) -> bool:
        """Take the lock if that can be done at once; True if it is held now. Who waits asks again."""
        if self._gate is None and not self._complete:
            self._gate = self._lock("gate", fcntl.LOCK_EX)
            if self._gate is None:
                return False  # somebody waits to be alone, and comes first
        while not self._complete:
            how = fcntl.LOCK_EX if self.exclusive else fcntl.LOCK_SH
            held = self._lock(self._names[len(self._held)], how)
            if held is None:
                break
            self._held.append(held)
        if self._complete:
            self._close_gate()
        elif not self.exclusive:
            self.release()
        return self._complete

    def release(self) -> None:
        """Give it back; a child that inherited the files keeps it until it is gone."""
        self._close_gate()
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    @property
    def _complete(self) -> bool:
        return len(self._held) == len(self._names)

    def _close_gate(self) -> None:
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def _lock(self, name: str, how: int) -> int | None:
        descriptor = _open(self._folder / f"{name}.lock")
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _folder() -> Path:
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / "mixerzoo-locks"
    try:
        folder.mkdir(mode=0o1777)
        folder.chmod(0o1777)  # for all users, whatever this one's umask
    except FileExistsError:
        pass
    return folder


def _open(path: Path) -> int:
    for flags in _ways_to_open():
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except (PermissionError, FileNotFoundError):
            continue
        return descriptor
    raise OSError(f"{path} cannot be opened; name another folder for locks in {FOLDER_VARIABLE}")


def _ways_to_open() -> Iterator[int]:
    yield os.O_RDONLY  # it is there, perhaps another user's
    yield os.O_RDWR | os.O_CREAT
    yield os.O_RDONLY  # made by somebody else meanwhile
