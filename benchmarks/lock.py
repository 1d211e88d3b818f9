"""One writer at a time in a folder, by a lock of the kernel; where the file system has none, by a lease: a file that
only one process can make, and that says whose it is.

A lease does not go with its process. Another one may take it over only if it can prove that the owner is dead: both
hold a lock of the kernel in a folder of the machine itself while they work, and the lease says which. A lease of
another machine is never taken over: a process that stands still there could go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from .errors import RunError
from .files import storage_error

LOCK_FILE, LEASE_FILE = ".lock", ".lease"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class FolderLock:
    """The right to write in `folder`, which is made if it is not there. Not to be taken twice by one process."""

    patience_seconds = 5.0  # children of a killed runner need a moment to die
    renew_seconds = 2.0  # between two signs of life of the owner of a lease

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: list[int] = []
        self._lease: _Lease | None = None

    @property
    def fileno(self) -> int:
        """Of the file whose lock a child that inherits it keeps."""
        assert self._descriptors, "the lock is not held"
        return self._descriptors[0]

    def acquire(self) -> None:
        """Raises `RunError` if another process has it, `StorageError` if the folder cannot be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with_locks = self._take_lock(self.folder / LOCK_FILE)
            if not with_locks or (self.folder / LEASE_FILE).exists():
                self._take_lock(local_lock(self.folder), must=True)
                self._lease = _Lease(self.folder / LEASE_FILE, self.renew_seconds, self.patience_seconds)
                self._lease.take()
        except OSError as error:
            self.release()
            raise storage_error(self.folder / LOCK_FILE, error) from error
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Raise `RunError` if somebody took the lease away; a lock of the kernel cannot be lost."""
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """May be called at any time."""
        if self._lease is not None:
            self._lease.give_back()
            self._lease = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _take_lock(self, path: Path, must: bool = False) -> bool:
        """Whether the file system has locks; then it is held. must: raise `RunError` where it has none."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._descriptors.append(descriptor)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise RunError(
                        f"another run is at work in {self.folder}; wait for it, or choose another folder with --out"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _NO_LOCKS:
                    raise
                if must:
                    raise RunError(
                        f"neither {self.folder} nor {path.parent} is on a file system with locks; "
                        "set TMPDIR to a folder of this machine's own disk"
                    ) from None
                return False


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder, or may hold it: of another machine that cannot always be told."""
    locked = _is_locked(folder / LOCK_FILE)
    if locked is not None and (locked or not (folder / LEASE_FILE).exists()):
        return locked
    owner = _read_lease(folder / LEASE_FILE)
    if owner is None:
        return (folder / LEASE_FILE).exists()
    return not _is_of_here(owner, local_lock(folder)) or bool(_is_locked(local_lock(folder))) or _lives(owner)


def local_lock(folder: Path) -> Path:
    """The file of this machine's own that stands for a folder of a file system without locks."""
    own = Path(tempfile.gettempdir()) / f"mixerzoo-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise RunError(f"{own} is somebody else's; set TMPDIR to a folder of your own")
    there = folder.stat()
    return own / f"{hashlib.sha256(f'{there.st_dev} {there.st_ino}'.encode()).hexdigest()[:16]}.lock"


class _Lease:
    """A file that only one process can make. renew_seconds: between two signs of life; patience_seconds: how long a
    living owner is waited for."""

    def __init__(self, path: Path, renew_seconds: float, patience_seconds: float) -> None:
        self.path, self.renew_seconds, self.patience_seconds = path, renew_seconds, patience_seconds
        self._local = local_lock(path.parent)
        self._token = secrets.token_hex(8)
        self._descriptor: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self) -> None:
        """The lock of `local_lock` must be held: then an owner of this machine is dead."""
        begun, sign = time.monotonic(), _sign(self.path)
        while not self._make():
            owner = _read_lease(self.path)
            if owner is not None and _is_of_here(owner, self._local) and not _lives(owner):
                self.path.unlink(missing_ok=True)
            elif time.monotonic() - begun > self.patience_seconds:
                raise RunError(self._refusal(owner, renewed=_sign(self.path) != sign))
            else:
                time.sleep(0.05)
        self._thread.start()

    def check(self) -> None:
        owner = _read_lease(self.path)
        if owner is None or owner.get("token") != self._token:
            raise RunError(
                f"{self.path} was taken away: somebody removed it while this run was at work. Nothing more is written; "
                "start again when no other run is at work there, finished cases are kept"
            )

    def give_back(self) -> None:
        self._over.set()
        if self._descriptor is None:
            return
        self._thread.join()
        with contextlib.suppress(OSError, RunError):
            self.check()
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _make(self) -> bool:
        """Whether there was none, and this one is ours now."""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        said = {
            "host": platform.node(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": _machine(self._local),
            "token": self._token,
        }
        os.write(self._descriptor, json.dumps(said).encode())
        os.fsync(self._descriptor)
        return True

    def _renew(self) -> None:
        while not self._over.wait(self.renew_seconds):
            with contextlib.suppress(OSError):  # `check` finds out whether it is gone
                os.utime(self._descriptor or -1)

    def _refusal(self, owner: dict[str, Any] | None, renewed: bool) -> str:
        folder = self.path.parent
        if owner is None:
            return f"{self.path} is damaged; if nobody is at work in {folder}, remove it and start again"
        whose = f"process {owner.get('pid')!r} on {owner.get('host')!r}, since {owner.get('since')!r}"
        if renewed:
            return f"another run is at work in {folder}: {whose}; wait for it, or choose another folder with --out"
        return (
            f"another run may be at work in {folder}: {whose}. The file system has no locks, so whether that process "
            f"lives cannot be told from here; it gave no sign for {self.patience_seconds:g} s, and gives one every "
            f"{self.renew_seconds:g} s while it runs. If it is gone for good, remove {self.path} and start again"
        )


def _read_lease(path: Path) -> dict[str, Any] | None:
    """What a lease says; None if there is none, or a damaged one."""
    try:
        said = json.loads(str(path.read_bytes(), "utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _machine(local: Path) -> list[Any]:
    """What tells apart machines, and containers that see different files: which boot, and which file is the lock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = platform.node()
    there = local.stat()
    return [boot, there.st_dev, there.st_ino]


def _is_of_here(owner: dict[str, Any], local: Path) -> bool:
    return local.exists() and owner.get("machine") == _machine(local)


def _lives(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is the one that the lease names."""
    try:
        process = psutil.Process(owner["pid"])
        is_it = process.create_time() == owner["process_started"]
        return bool(is_it and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _sign(path: Path) -> int | None:
    """Changes with every renewal, however the clock goes."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock of a file; None where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # shared, so that several may look at once; given back at once, so that a runner that starts gets it
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    finally:
        os.close(descriptor)
    return False
