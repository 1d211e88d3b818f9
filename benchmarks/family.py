"""The processes that a case starts: what they hold together, and their end."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from . import guardian


class Family:
    """All that the process `pid` started, itself left out, as far as they were seen: those too that left its group or
    its session, or whose parent is gone. What they share counts for each."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._seen: dict[int, psutil.Process] = {}
        self.resident_bytes = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen[pid] = psutil.Process(pid)

    def look(self) -> None:
        """See who is there, and what they hold."""
        for process in list(self._seen.values()):
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in self._seen:  # the first one, or its parent is gone
                    self._seen |= {p.pid: p for p in process.children(recursive=True) if p.pid not in self._seen}
        self._seen = {pid: p for pid, p in self._seen.items() if p.is_running()}
        self.resident_bytes = sum(_resident_bytes(p) for pid, p in self._seen.items() if pid != self.pid)

    @property
    def size(self) -> int:
        """How many there were when it was looked at."""
        return len(self._seen.keys() - {self.pid})

    def kill(self) -> None:
        """Kill all of them, the process `pid` at last: as long as it is there, it is their ancestor."""
        guardian.kill_all(self._others)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it may not have made its group yet
            os.killpg(self.pid, signal.SIGKILL)
        if self.pid in self._seen:
            with contextlib.suppress(psutil.Error):
                self._seen[self.pid].kill()

    def _others(self) -> list[psutil.Process]:
        """All of them that are there now, the process `pid` left out."""
        self.look()
        return [process for pid, process in self._seen.items() if pid != self.pid]


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
