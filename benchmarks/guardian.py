"""Nothing that a case started outlives the case, nor the runner, whatever is killed.

On Linux three processes adopt what loses its parent below them, where else the system's first process would. The
process of a case: what it started stays its own, sessions and forks of forks included. The fork server, from which the
cases are forked: what an ended case left is found among its children. And the runner, in case the fork server dies.
When the runner dies, the fork server kills all that is below it, and ends. It has a session of its own, so that what is
sent to the runner's group or terminal does not hit it.

The fork server becomes all this by importing this module, before any other that it is to import.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable
from multiprocessing import forkserver
from types import FrameType

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FORK_SERVER = re.compile(r"from multiprocessing\.forkserver import main; main\((\d+), ")  # begins its command
_PAUSE_SECONDS, _PATIENCE_SECONDS = 0.002, 10.0

_children_before: frozenset[int] | None = None  # of this process, when it began to adopt others


def adopt_orphans() -> None:
    """Make this process the parent of whatever loses its own below it. On Linux alone."""
    global _children_before
    if sys.platform == "linux" and _children_before is None:
        _children_before = frozenset(child.pid for child in _children(psutil.Process()))
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this signal when the parent dies, even while native code runs. On Linux alone."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, number)


def kill_leftovers(at_work: Collection[int]) -> None:
    """Kill what ended cases of this process left, and wait until it is gone; those `at_work`, by the ids of their
    processes, keep what they started."""
    if sys.platform == "linux":
        kill_all(lambda: _families(process for process in _adopted() if process.pid not in at_work))


def fork_server() -> psutil.Process | None:
    """The one that this process started last, dead or alive; None if it started none."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid) if pid is not None else None
    return None


def wait_for_end(process: psutil.Process | None, seconds: float) -> None:
    """Wait until it is dead, at most so long; nobody is told of it, as `wait` would be."""
    deadline = time.monotonic() + seconds
    while process is not None and is_alive(process) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)


def _adopted() -> list[psutil.Process]:
    """The children of the fork server, and those of this process that it did not start itself."""
    server = fork_server()
    own = [child for child in _children(psutil.Process()) if _is_adopted(child.pid) and child != server]
    return [*own, *_children(server)]


def _is_adopted(child: int) -> bool:
    """Whether a child of this process was not started by it: what a case starts is never in this process's session."""
    with contextlib.suppress(ProcessLookupError):
        return child not in (_children_before or ()) and os.getsid(child) != os.getsid(0)
    return False


def kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill what `find` finds, in that order, until it finds nothing that lives; what waits for a dead disk is given up.

    Twice nothing: a look at all processes misses the children of one that goes meanwhile, the next one does not.
    """
    deadline, vain = time.monotonic() + _PATIENCE_SECONDS, 0
    while vain < 2 and time.monotonic() < deadline:
        living = [process for process in find() if is_alive(process)]
        vain = 0 if living else vain + 1
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if living:
            time.sleep(_PAUSE_SECONDS)


def _families(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """They and all below them. Children come before their parents: should this process be killed while it kills them,
    those who watch over them are still there."""
    found = []
    for root in roots:
        with contextlib.suppress(psutil.Error):
            found += root.children(recursive=True)[::-1]
        found.append(root)
    return found


def _children(process: psutil.Process | None) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children() if process is not None else []
    return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: it is neither gone nor a zombie."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _guard(listener: int) -> None:
    """Make this process, the fork server, what the head of this file says. listener: the file number of its socket."""
    runner, address = os.getppid(), _address(listener)

    def end_with_runner(number: int, frame: FrameType | None) -> None:
        if os.getppid() != runner:  # else only the thread is gone that started this process
            _end_all(address)
            os._exit(0)

    os.setsid()
    adopt_orphans()
    atexit.register(_end_all, address)
    signal.signal(signal.SIGTERM, end_with_runner)
    die_with_parent(signal.SIGTERM)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    # it says so of whatever it has adopted
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")


def _end_all(address: str) -> None:
    """Kill whatever is below the fork server, and remove its socket: a runner that was killed could not."""
    kill_all(lambda: _families(_children(psutil.Process())))
    if os.path.isabs(address):
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)


def _address(listener: int) -> str:
    with socket.socket(fileno=os.dup(listener)) as opened:
        return str(opened.getsockname())


_started_as = _FORK_SERVER.match(sys.orig_argv[-1]) if sys.platform == "linux" else None
if _started_as is not None:
    _guard(listener=int(_started_as[1]))
