"""Child processes that prove or time backends: watched, ended with all that they started, begun anew after a death."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .cases import Case

COMMAND = (sys.executable, "-m", "mixerzoo.mixers.doctor.child")
_START_SECONDS = 180.0  # for imports and the first touch of a device, on a busy machine
_GIVE_UP_AFTER = 3  # deaths in a row
_POLL_SECONDS = 0.2
_STDERR_BYTES = 4000


@dataclass
class Job:
    """Cases of one backend, for one child after the other.

    op: the op's package. fields: what was found of each case, as fields of its verdict. gradients: whether training is
    timed. settings: the same for all jobs of an examination.
    """

    op: str
    work: Literal["prove", "time"]
    cases: Sequence[Case]
    settings: Mapping[str, Any]
    gradients: Sequence[bool] = ()
    fields: list[dict[str, Any]] = field(default_factory=list)
    next: int = 0
    deaths: int = 0

    def __post_init__(self) -> None:
        self.fields = [{} for _ in self.cases]

    @property
    def finished(self) -> bool:
        return self.next >= len(self.cases)

    def to_json(self) -> str:
        """What the child reads."""
        mine = {"op": self.op, "work": self.work, "cases": self.cases, "first": self.next}
        return json.dumps({**mine, "gradients": list(self.gradients), "path": sys.path, **self.settings})


class _Child:
    """A process at work on a job."""

    def __init__(self, job: Job, environment: Mapping[str, str], time_limit: float) -> None:
        self.job, self.time_limit = job, time_limit
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C goes to the parent alone, a kill to all of the child
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which is found out below
            self.stdin.write(job.to_json().encode() + b"\n")
            self.stdin.flush()
        self.deadline = time.monotonic() + max(time_limit, _START_SECONDS)
        self.first = job.next
        self.begun: dict[str, Any] | None = None
        self.ended = self.late = False
        self._rest = b""

    def read(self) -> list[int]:
        """Take in what it says; returns the cases that are done."""
        text = os.read(self.stdout.fileno(), 1 << 16)
        self.ended = not text
        *lines, self._rest = (self._rest + text).split(b"\n")
        done = []
        for message in map(json.loads, lines):
            self.deadline = time.monotonic() + self.time_limit
            if "begin" in message:
                self.begun = message
            elif "found" in message:
                self.job.fields[message["found"]].update(message["fields"])
            elif "done" in message:
                self.begun, self.job.deaths = None, 0
                self.job.next = message["done"] + 1
                done.append(message["done"])
        return done

    def end(self) -> list[int]:
        """End it, with all that it started, and say of its case how it died; returns the cases that this decides."""
        self.late = not self.ended
        if self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        code, job = self.process.wait(), self.job
        # it may end between two cases, where it no longer trusts the device
        died = self.begun is not None or self.late or code != 0 or job.next == self.first
        done = [] if not died or job.finished else self._blame(code)
        for file in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()
        return done

    def _blame(self, code: int) -> list[int]:
        job, at = self.job, self.begun or {"stage": "start", "blame": "outcome"}
        outcome = "timed out" if self.late else "crashed"
        how = f"no answer within {self.time_limit:g} s" if self.late else _how_it_ended(code)
        detail = "\n".join(filter(None, (f"{at['stage']}: {how}", self._last_words())))
        job.fields[job.next] |= {at["blame"]: outcome, "detail": detail}
        done, job.next, job.deaths = [job.next], job.next + 1, job.deaths + 1
        while job.deaths >= _GIVE_UP_AFTER and not job.finished:
            job.fields[job.next] |= {at["blame"]: outcome, "detail": f"not tried after {job.deaths} that {outcome}"}
            done.append(job.next)
            job.next += 1
        return done

    def _last_words(self) -> str:
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return "\n".join(line for line in lines if not line.startswith("Extension modules:"))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    time_limit: float,
    environment: Mapping[str, str],
    finished: Callable[[Job, int], None],
) -> None:
    """Run jobs, so many at once, and call `finished(job, index)` after each case.

    time_limit: seconds of one stage of a case. environment: variables of the children.
    """
    waiting, running = deque(jobs), list[_Child]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_Child(waiting.popleft(), environment, time_limit))
                    selector.register(running[-1].stdout, selectors.EVENT_READ, running[-1])
                ready = [key.data for key, _ in selector.select(_POLL_SECONDS)]
                for child in ready:
                    for i in child.read():
                        finished(child.job, i)
                for child in [c for c in running if c not in ready]:
                    # a process that it started may still hold its standard output
                    child.ended = child.process.poll() is not None
                for child in [c for c in running if c.ended or time.monotonic() > c.deadline]:
                    selector.unregister(child.stdout)
                    running.remove(child)
                    for i in child.end():
                        finished(child.job, i)
                    if not child.job.finished:
                        waiting.appendleft(child.job)
        finally:
            for child in running:
                child.end()
