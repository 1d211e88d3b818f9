"""One case at work in a process of its own, watched over: its limits are kept, and every end is an outcome."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from . import guardian
from .doing import Doing
from .executors.base import Ended, Job, Lost, News
from .family import Family
from .machine import MachineLock, this_machine
from .worker import Inherited, RunCase, run_case, serve

# Imported once, by the process that the cases are forked from: a case starts in milliseconds, not in seconds.
PRELOADED = ("mixerzoo.benchmarks.suite", "mixerzoo.benchmarks.cli")
POLL_SECONDS = 0.5  # rare enough not to disturb what is measured
WAITS_ALONE = Doing("waits for the cases of another run on this machine to end")
WAITS_BESIDE = Doing("waits for another run, which times a case on this machine or wants to")
_STDERR_BYTES = 4000
_STARTS = 10  # tries
_NOBODY_KNOWS = 255  # the exit code that multiprocessing gives to a process whose fork server is gone
_DEATH_SECONDS = 2.0  # a process that dies closes its files first
_at_work: set[int] = set()  # the processes of all cases of this one


def case_context(preloaded: Sequence[str] = PRELOADED) -> ForkServerContext | SpawnContext:
    """How the processes of cases are made, with the modules `preloaded` imported once for all of them."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    # a fork server rather than a plain fork: the runner has threads, and forking those is not safe
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([guardian.__name__, *preloaded])
    guardian.adopt_orphans()
    return context


class CaseProcess:
    """A case at work. `waits` are ready when `look` is to be called, and that at least every `POLL_SECONDS` besides.

    held: open files that its process holds as long as it lives.
    """

    def __init__(
        self, job: Job, context: ForkServerContext | SpawnContext, run_case: RunCase, held: Sequence[int]
    ) -> None:
        self.job = job
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its process
        self._connection, theirs = context.Pipe()
        arguments = (run_case, _task(job), theirs, Inherited(self._stderr.fileno()), [Inherited(h) for h in held])
        self._started = time.monotonic()
        self._process = _start(context, arguments)
        theirs.close()
        self._family = Family(self._process.pid or 0)
        _at_work.add(self._family.pid)
        self._server = guardian.fork_server()
        self._said: dict[str, Any] = {}
        self._outcome: dict[str, Any] | None = None
        self._code: int | None = None
        self._killed: tuple[str, str] | None = None
        self._peak_bytes = 0
        self._looked = 0.0

    @property
    def waits(self) -> list[int | Connection]:
        """For `multiprocessing.connection.wait`."""
        return [self._process.sentinel, self._connection]

    def look(self) -> bool:
        """Hear what it says and keep its limits; whether it is over."""
        self._receive()
        if self._outcome is not None or self._code is not None or not self._process.is_alive():
            self._receive()  # what it said last
            return True
        if self._killed is None:
            self._enforce_limits()
        return False

    def news(self) -> News:
        """What it said last, and what it holds now."""
        return News(self.job.case.id, resident_bytes=self._family.resident_bytes, **self._said)

    def end(self) -> Ended | Lost:
        """Kill what is left of it, its children included, and say what became of it."""
        seconds = time.monotonic() - self._started
        case = self.job.case
        try:
            if self._outcome is None and self._killed is None and self._server_died():
                return Lost(case.id, "the process that starts the cases died", seconds, this_machine(case.device).name)
            outcome = self._outcome or {"backends": {}, **self._unreported_end()}
            machine = this_machine(case.device)
            return Ended(case.id, outcome, seconds, self.job.threads, self._peak_bytes, machine)
        finally:
            self.stop()

    def stop(self) -> None:
        """Kill it and all that it started, whatever it is doing."""
        self._family.kill()
        self._process.join()
        _at_work.discard(self._family.pid)
        guardian.kill_leftovers(_at_work)
        self._process.close()
        self._connection.close()
        self._stderr.close()

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):  # it died; its exit code tells more
            while self._outcome is None and self._connection.poll():
                message = self._connection.recv()
                if "outcome" in message:
                    self._outcome = message["outcome"]
                    self._peak_bytes = max(self._peak_bytes, message["peak_bytes"])
                elif "exit_code" in message:
                    self._code = message["exit_code"]
                else:
                    self._said = message

    def _enforce_limits(self) -> None:
        now, time_limit, memory_limit = time.monotonic(), self.job.time_limit_seconds, self.job.memory_limit_bytes
        # looking takes time from what is measured
        if now - self._looked >= (4 if self.job.case.exclusive else 1) * POLL_SECONDS:
            self._looked = now
            self._family.look()
        held = self._family.resident_bytes
        self._peak_bytes = max(self._peak_bytes, held)
        if now - self._started > time_limit:
            self._killed = "timeout", f"stopped after the suite's time limit of {time_limit:g} s"
        elif memory_limit is not None and held > memory_limit:
            limit = f"the suite's limit is {memory_limit / 1e9:.2f} GB"
            where = f" in {self._family.size} processes" if self._family.size > 1 else ""
            self._killed = "out_of_memory", f"held {held / 1e9:.2f} GB{where}, {limit}"
        if self._killed is not None:
            self._family.kill()

    def _server_died(self) -> bool:
        """Whether the fork server went: nobody tells any more how the process of the case ends."""
        if self._code is not None or self._process.exitcode != _NOBODY_KNOWS or self._server is None:
            return False
        guardian.wait_for_end(self._server, _DEATH_SECONDS)
        return not guardian.is_alive(self._server)

    def _unreported_end(self) -> dict[str, Any]:
        """Status and error of a case whose process ended without a word."""
        if self._killed is not None:
            status, error = self._killed
            return {"status": status, "error": error}
        code = self._code if self._code is not None else self._process.exitcode or 0
        if code == -signal.SIGKILL:
            held = f"last seen with {self._peak_bytes / 1e9:.2f} GB" if self._peak_bytes else "early"
            error = f"killed by SIGKILL, which the runner did not send: the system ran out of memory ({held})"
            return {"status": "out_of_memory", "error": error}
        how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        tail = self._stderr.read().decode(errors="replace").strip()
        return {"status": "crashed", "error": f"{how}\n{tail}".strip()}


def _start(context: ForkServerContext | SpawnContext, arguments: tuple[Any, ...]) -> BaseProcess:
    """A process that serves a case. Raises `OSError` if none is to be had."""
    for _ in range(_STARTS):
        process = context.Process(target=serve, args=arguments, daemon=True)
        try:
            process.start()
        except (EOFError, ConnectionError):  # the fork server died just now; once it is gone, there will be another
            guardian.wait_for_end(guardian.fork_server(), _DEATH_SECONDS)
            guardian.kill_leftovers(_at_work)  # perhaps it had forked already
        else:
            return process
    raise OSError("the process that starts the cases dies again and again; is somebody killing it, or no memory left?")


def _task(job: Job) -> dict[str, Any]:
    """What the process of the case is told."""
    case = job.case
    return {
        "model": case.model,
        "measure": case.measure,
        "parameters": case.parameters,
        "seed": case.seed,
        "device": case.device,
        "tf32": case.tf32,
        "threads": job.threads,
        "folder": job.folder,
    }


def run_to_end(
    job: Job,
    heard: Callable[[News], None],
    run_case: RunCase = run_case,
    preloaded: Sequence[str] = PRELOADED,
) -> Ended | Lost:
    """Run one case in a process of its own on this machine, as soon as `MachineLock` allows it, and watch it.

    heard: told about twice a second how it goes. An exception of `heard` ends the case and comes through.
    """
    lock = MachineLock(job.case.device, job.case.exclusive)
    process: CaseProcess | None = None
    try:
        while not lock.take():
            heard(News(job.case.id, doing=WAITS_ALONE if job.case.exclusive else WAITS_BESIDE))
            time.sleep(POLL_SECONDS)
        process = CaseProcess(job, case_context(preloaded), run_case, lock.filenos)
        while not process.look():
            heard(process.news())
            wait(process.waits, POLL_SECONDS)
        ended, process = process.end(), None
        return ended
    finally:
        if process is not None:
            process.stop()
        lock.release()
