"""Cases as processes of this machine, several side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

from ..case import Case
from ..case_process import POLL_SECONDS, PRELOADED, WAITS_ALONE, WAITS_BESIDE, CaseProcess, case_context
from ..environment import usable_cores
from ..limits import Limits
from ..machine import MachineLock
from ..runs import Run, RunLock
from ..worker import RunCase, run_case
from .base import Event, Executor, Job, News

_LOCK_SECONDS = 0.2  # between two tries to get the machine


@dataclass
class _Work:
    """A case that was submitted: its process, None while it waits for the machine."""

    job: Job
    lock: MachineLock
    process: CaseProcess | None = None
    said: bool = False


class LocalExecutor(Executor):
    """Runs cases on this machine.

    limits: `time_limit_seconds`, `memory_limit_bytes` and how many `jobs` at a time, see `Limits`. run_case: runs one
    case, in its process; preloaded: modules that it needs.
    """

    def __init__(
        self, limits: Limits, device: str, run_case: RunCase = run_case, preloaded: Sequence[str] = PRELOADED
    ) -> None:
        self._limits, self._device, self._run_case = limits, device, run_case
        self._context = case_context(preloaded)
        self._work: list[_Work] = []
        self._jobs = 1

    @property
    def jobs(self) -> int:
        return self._jobs

    def begin(self, run: Run, store: RunLock, cases: int) -> None:
        self._run, self._store = run, store
        self._jobs = self._limits.choose_jobs(self._device, cases)

    def room(self, exclusive: bool) -> int:
        return (1 if exclusive else self._jobs) - len(self._work)

    def submit(self, case: Case, attempt: int) -> None:
        threads = usable_cores() if case.exclusive else max(1, usable_cores() // self._jobs)
        folder = str(self._run.checkpoint_folder(case.checkpoint_id).resolve())
        limits = self._limits
        job = Job(case, attempt, folder, threads, limits.time_limit_seconds, limits.memory_limit_bytes)
        self._work.append(_Work(job, MachineLock(case.device, case.exclusive)))

    def wait(self, seconds: float) -> list[Event]:
        events: list[Event] = [news for work in self._work if (news := self._start(work)) is not None]
        if events:
            return events
        # a process that ended is ready forever, so is its connection: both are read until they are empty
        ready = [thing for work in self._work if work.process is not None for thing in work.process.waits]
        waiting = any(work.process is None for work in self._work)
        patience = min(seconds, _LOCK_SECONDS if waiting else POLL_SECONDS)
        if ready:
            wait(ready, patience)
        else:
            time.sleep(patience)
        return [event for work in list(self._work) if work.process is not None for event in [self._look(work)]]

    def stop(self) -> None:
        for work in self._work:
            if work.process is not None:
                work.process.stop()
            work.lock.release()
        self._work.clear()

    def _start(self, work: _Work) -> News | None:
        """Start the process of a case if the machine is to be had; what is to be told of it, once."""
        if work.process is not None:
            return None
        if work.lock.take():
            held = [self._store.fileno, *work.lock.filenos]
            work.process = CaseProcess(work.job, self._context, self._run_case, held)
            return work.process.news() if work.said else None
        if work.said:
            return None
        work.said = True
        return News(work.job.case.id, doing=WAITS_ALONE if work.job.case.exclusive else WAITS_BESIDE)

    def _look(self, work: _Work) -> Event:
        assert work.process is not None
        if not work.process.look():
            return work.process.news()
        self._work.remove(work)
        try:
            return work.process.end()
        finally:
            work.lock.release()
