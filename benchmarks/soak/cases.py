"""What a soaked run consists of: cases without torch that do what their parameters say, and note it in a journal."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..case import Case, Plan
from ..runs import write_atomically
from ..worker import Channel

JOURNAL = "MIXERZOO_SOAK_JOURNAL"  # names the journal to the processes of cases
STEP_SECONDS = 0.02
SUITE = {"name": "soak"}

# What a case may do, and how often.
KINDS = {"steps": 6, "checkpoints": 4, "children": 4, "native": 1}


@dataclass(frozen=True)
class Note:
    """A line of the journal. seconds: monotonic. case: the seed of the case. what: `start`, `step` or `end`."""

    seconds: float
    case: int
    what: str
    pid: int
    step: int

    @classmethod
    def read(cls, line: str) -> Note:
        seconds, case, what, pid, step = line.split()
        return cls(float(seconds), int(case), what, int(pid), int(step))


def write_note(case: int, what: str, step: int = 0) -> None:
    """Add a line to the journal; whole, whoever else writes."""
    line = f"{time.monotonic()} {case} {what} {os.getpid()} {step}\n"
    descriptor = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class SoakPlanner:
    """The plan of one folder, drawn from `seed`: a dozen cases, and some more that follow from results."""

    def __init__(self, seed: str) -> None:
        draw = random.Random(seed)
        self._first = [_case(number, draw) for number in range(draw.randint(8, 12))]
        self._then = [_case(number, draw) for number in range(100, 103)]

    def __call__(self, results: Mapping[str, Any]) -> Plan:
        """The last case of the first ones adds two, and one of those the last."""
        cases = list(self._first)
        for more in (self._then[:2], self._then[2:]):
            grower = cases[-1]
            if grower.id not in results:
                return Plan(tuple(cases), frozenset([grower.id]))
            cases += more
        return Plan(tuple(cases))

    @property
    def cases(self) -> dict[str, Case]:
        """All that there can be, by id."""
        return {case.id: case for case in [*self._first, *self._then]}


def _case(number: int, draw: random.Random) -> Case:
    kind = draw.choices([*KINDS], [*KINDS.values()])[0]
    parameters = {"does": kind, "steps": draw.randint(2, 16)}
    exclusive = draw.random() < 0.25
    return Case("fake", "identity", {"layout": "identity"}, "soak", parameters, number, "cpu", exclusive)


def metrics_of(case: Case) -> dict[str, Any]:
    """What `case` measures, however often it is interrupted."""
    digest = ""
    for step in range(case.parameters["steps"]):
        digest = _next(digest, case.seed, step)
    return {"digest": digest}


def run_case(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """A chain of hashes, a link a step; see `KINDS` for what is done besides."""
    number, does, steps = job["seed"], job["parameters"]["does"], job["parameters"]["steps"]
    write_note(number, "start")
    if does == "children":
        _have_children()
    state: dict[str, Any] = {"step": 0, "digest": ""}
    kept = Path(job["folder"]) / "state.json" if does == "checkpoints" else None
    if kept is not None and kept.exists():
        state = json.loads(kept.read_text())
    while state["step"] < steps:
        write_note(number, "step", state["step"])
        channel.progress(state["step"] / steps, "linking")
        _spend(does)
        state = {"step": state["step"] + 1, "digest": _next(state["digest"], number, state["step"])}
        if kept is not None:
            write_atomically(kept, json.dumps(state))
    write_note(number, "end", steps)
    return {"digest": state["digest"]}


def _next(digest: str, number: int, step: int) -> str:
    return hashlib.sha256(f"{digest} {number} {step}".encode()).hexdigest()[:16]


def _spend(does: str) -> None:
    if does == "native":  # keeps the interpreter's lock, so no thread of this process can run meanwhile
        ctypes.PyDLL(None).usleep(int(3e6 * STEP_SECONDS))
    else:
        time.sleep(STEP_SECONDS)


def _have_children() -> None:
    """A child, one in a session of its own, one whose parent is gone and that has no environment, and a fork that
    holds whatever this process holds. They stay for longer than any case."""
    subprocess.Popen(["sleep", "60"])
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    subprocess.run(["sh", "-c", "setsid sleep 60 &"], env={}, check=True)
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
