"""The processes of a soaked run, found from outside: all that descends from this one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_FORK_SERVER = "multiprocessing.forkserver"
_PF_FORKNOEXEC = 0x40  # of a process: it was forked, and has executed no other program since


def adopt_orphans() -> None:
    """From now on whatever loses its parent below this process becomes its child: nothing can escape `descendants`."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this system does not let a process adopt orphans; a soak needs Linux")


def descendants(started: Iterable[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """All living processes below this one; those that it adopted and that have ended are let go.

    started: its own children, whose ends are theirs to ask for.
    """
    for child in started:
        child.poll()
    own = {child.pid for child in started}
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            elif process.ppid() == os.getpid() and process.pid not in own:
                os.waitpid(process.pid, os.WNOHANG)
    return found


def wait_until_gone(started: Iterable[subprocess.Popen[bytes]], seconds: float) -> tuple[list[psutil.Process], float]:
    """Wait until nothing lives below this process, at most so long; who is still there, and how long it took."""
    begun = time.monotonic()
    while left := descendants(started):
        if time.monotonic() - begun > seconds:
            break
        time.sleep(0.01)
    return left, time.monotonic() - begun


def fork_server(runner: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The process that the cases of `runner` are forked from; None if there is none now."""
    return next((p for p in _children(runner.pid) if _FORK_SERVER in _command(p) and not _is_forked(p)), None)


def watchers(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that stand between the fork server and the cases at work, one each."""
    server = fork_server(runner)
    return [p for p in _children(server.pid) if _is_forked(p)] if server is not None else []


def workers(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of the cases at work."""
    return [p for watcher in watchers(runner) for p in _children(watcher.pid) if _is_forked(p)]


def parent(process: psutil.Process) -> list[psutil.Process]:
    """Its parent; nothing if it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = process.parent()
        return [] if found is None else [found]
    return []


def below(process: psutil.Process) -> list[psutil.Process]:
    """All that descends from `process`; nothing if it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def holders(path: Path, among: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have the file open."""
    return [p for p in among if any(name == str(path.resolve()) for name in _open_files(p.pid))]


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def described(processes: Iterable[psutil.Process]) -> str:
    """A line for each, for people."""
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())[:60]
            lines.append(f"{process.pid} (parent {process.ppid()}, {process.status()}): {command}")
    return "\n".join(lines)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children()
    return []


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_forked(process: psutil.Process) -> bool:
    """Whether it still runs its parent's program."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        return bool(int(stat.rpartition(")")[2].split()[6]) & _PF_FORKNOEXEC)
    return False


def _open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(link))
    return names
