"""Writing files so that a reader, or whoever comes after a kill, finds the old one or the new one, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from .errors import StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a system says when there is no room: of the disk, of a quota, for a file of that size."""
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PARTIAL = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.partial")
_swept: set[Path] = set()


def write_atomically(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write text, as UTF-8, or bytes, so that a reader, or a run after a kill, sees the old file or the new one.

    content: or a function that writes it into the file that it is given. What a process that was killed here left of
    its writing is removed. Raises `StorageError`.
    """
    temporary = path.with_name(f".{path.name}.{_this_host()}-{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise storage_error(path, error) from error
        raise


def sweep(folder: Path) -> None:
    """Remove what dead processes of this host left half written in `folder`; once in each process that writes there."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in partial_files(folder):
        found = _PARTIAL.fullmatch(path.name)
        if found is not None and found[1] == _this_host() and not psutil.pid_exists(int(found[2])):
            with contextlib.suppress(OSError):  # another process sweeps too
                path.unlink()


def partial_files(folder: Path) -> list[Path]:
    """Files of `folder` that are being written, or were left half written by a process of whatever host."""
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if _PARTIAL.fullmatch(entry.name)]


def storage_error(path: Path, error: OSError) -> OSError:
    """What went wrong with writing `path`, with what to do about it; an error of another kind as it is."""
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    if error.errno in FULL:
        todo = "free some space, then start again: all that was written before is kept"
    elif error.errno in _CLOSED:
        todo = "whoever adds to a run must be allowed to write there: change that, or choose another folder"
    else:
        return error
    return StorageError(f"{path} cannot be written: {reason}; {todo}")


def _this_host() -> str:
    """8 hex digits for those processes whose ids can be compared: of one host, and there of one container."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:8]
