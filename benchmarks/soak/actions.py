"""What is done to a run, and what must follow at once from each of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from ..runs import Run
from . import processes
from .cases import JOURNAL, SoakPlanner
from .kept import Broken, Kept, case_of
from .processes import below, descendants, signal_all, wait_until_gone, workers
from .program import INTERRUPTED, PATIENCE_SECONDS, REFUSED

PROMPT_SECONDS = 20.0  # of what should take a moment: this machine may be busy


@dataclass
class Stage:
    """One folder with its runners. place: holds the run's folder and, beside it, all that the soak needs.

    runner: the one that is in charge, None if none is. started: those that may be there; starts: how many there were.
    done: the names of the actions so far. heard: how many notes there were when a fork server was killed. slowest: the
    most seconds until nothing was left of a run.
    """

    place: Path
    seed: str
    draw: random.Random
    runner: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    starts: int = 0
    done: list[str] = field(default_factory=list)
    heard: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temporary", "locks"):
            (self.place / name).mkdir(parents=True)
        self.run = Run(self.place / "run")
        self.kept = Kept(self.run, SoakPlanner(self.seed), self.place / "journal")

    @property
    def temporary(self) -> Path:
        """Where all of its processes have their temporary files."""
        return self.place / "temporary"

    def start(self) -> subprocess.Popen[bytes]:
        """Start a runner, in a process group of its own."""
        own = {JOURNAL: "journal", "MIXERZOO_LOCKS": "locks", "TMPDIR": "temporary"}
        environment = {**os.environ, **{name: str(self.place / file) for name, file in own.items()}}
        command = [sys.executable, "-m", "mixerzoo.benchmarks.soak.program", str(self.run.folder), self.seed]
        with self._said("ab") as said:
            runner = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        self.started.append(runner)
        self.starts += 1
        return runner

    def said(self) -> str:
        """The last words of its runners."""
        with self._said("rb") as file:
            return file.read().decode(errors="replace")[-3000:]

    def begun(self, runner: subprocess.Popen[bytes]) -> bool:
        """Whether it is past its imports."""
        return any(note.pid == runner.pid for note in self.kept.notes() if note.case < 0)

    def is_working(self, runner: subprocess.Popen[bytes]) -> bool:
        """Whether a case of this runner has noted something, or the runner is gone."""
        notes = self.kept.notes()
        first = next((number for number, note in enumerate(notes) if note.pid == runner.pid), len(notes))
        return len(notes) > first + 1 or runner.poll() is not None

    def wait_for(self, runner: subprocess.Popen[bytes], codes: set[int], what: str) -> int:
        """Wait for the end of a runner. Raises `Broken` if its exit code is another one, or if it does not end."""
        try:
            code = runner.wait(PROMPT_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken(f"a runner does not end ({what})") from None
        if code not in codes:
            raise Broken(f"a runner ended with code {code}, expected {sorted(codes)} ({what})")
        return code

    def clear(self, seconds: float = 5.0) -> None:
        """No runner is there any more: nothing of it may be. Raises `Broken` if something stays."""
        self.runner = None
        left, took = wait_until_gone(self.started, seconds)
        if left:
            raise Broken(f"processes are left after {seconds:g} s:\n{processes.described(left)}")
        self.slowest = max(self.slowest, took)
        self.started.clear()
        self.kept.check_unlocked()

    def _said(self, mode: str) -> IO[bytes]:
        return open(self.place / "said.txt", mode)  # type: ignore[return-value]


# Does something to the run, whose runner is at work; False if there was nothing to do it to.
Act = Callable[[Stage, subprocess.Popen], bool]


@dataclass(frozen=True)
class Action:
    """what: the part of a run that it is done to. often: how often, of all. kills: whether it sends SIGKILL."""

    name: str
    what: str
    often: int
    act: Act
    kills: bool = True


def kill_runner(stage: Stage, runner: subprocess.Popen) -> bool:
    runner.kill()
    return _dead(stage, runner)


def kill_group(stage: Stage, runner: subprocess.Popen) -> bool:
    os.killpg(runner.pid, signal.SIGKILL)
    return _dead(stage, runner)


def kill_everything(stage: Stage, runner: subprocess.Popen) -> bool:
    """In whatever order, until nothing is left: as a container ends."""
    while found := descendants(stage.started):
        stage.draw.shuffle(found)
        signal_all(found, signal.SIGKILL)
    return _dead(stage, runner)


def kill_holders(stage: Stage, runner: subprocess.Popen) -> bool:
    found = processes.holders(stage.run.folder / ".lock", descendants(stage.started))
    stage.draw.shuffle(found)
    if runner.pid not in {process.pid for process in found}:
        return False
    signal_all(found, signal.SIGKILL)
    return _dead(stage, runner)


def kill_fork_server(stage: Stage, runner: subprocess.Popen) -> bool:
    """Seldom if no case was begun since the last time: a runner gives up after some vain attempts."""
    server, heard = processes.fork_server(runner), len(stage.kept.notes())
    if server is None or (heard == stage.heard and stage.draw.random() < 0.8):
        return False
    stage.heard = heard
    signal_all([server], signal.SIGKILL)
    return True


def kill_worker(stage: Stage, runner: subprocess.Popen) -> bool:
    return _kill_case(stage, runner, lambda worker: [worker])


def kill_watcher(stage: Stage, runner: subprocess.Popen) -> bool:
    """What stands between the fork server and a case: the case goes with it."""
    return _kill_case(stage, runner, processes.parent)


def kill_child(stage: Stage, runner: subprocess.Popen) -> bool:
    """A child of a case, which does not care."""
    found = _choose(stage, [child for worker in workers(runner) for child in below(worker)])
    if found is not None:
        signal_all([found], signal.SIGKILL)
    return found is not None


def kill_worker_and_runner(stage: Stage, runner: subprocess.Popen) -> bool:
    """Within a moment, in which the runner may have noticed, or begun to say so."""
    found = _choose(stage, workers(runner))
    if found is None:
        return False
    case = case_of(stage.kept, found.pid)
    if case is None:
        stage.kept.unknown += 1
    else:
        stage.kept.killed.add(case.id)
    signal_all([found], signal.SIGKILL)
    time.sleep(stage.draw.uniform(0.0, 0.02))
    return kill_runner(stage, runner)


def kill_runner_of_stopped(stage: Stage, runner: subprocess.Popen) -> bool:
    """A stopped worker cannot see that its runner is gone, nor can what watches over it if that is stopped as well."""
    found = _choose(stage, workers(runner))
    if found is None:
        return False
    signal_all([found, *(processes.parent(found) if stage.draw.random() < 0.5 else [])], signal.SIGSTOP)
    return kill_runner(stage, runner)


def take_over(stage: Stage, runner: subprocess.Popen) -> bool:
    """A second runner waits for the first one, which is killed: the second goes on."""
    second = stage.start()
    time.sleep(stage.draw.uniform(0.0, 0.3))
    done = runner.poll() is not None
    runner.kill()
    runner.wait()
    if not done and second.poll() not in (None, 0):
        raise Broken(f"the runner was killed, and the second one, which waited, ended with code {second.returncode}")
    stage.runner = second
    return True


def kill_and_start_two(stage: Stage, runner: subprocess.Popen) -> bool:
    """Right after a kill, while children of the runner die: one of the two goes on, or one after the other."""
    runner.kill()
    runner.wait()
    _race(stage, [stage.start(), stage.start()])
    return True


def terminate(stage: Stage, runner: subprocess.Popen) -> bool:
    return _interrupt(stage, runner, signal.SIGTERM)


def interrupt(stage: Stage, runner: subprocess.Popen) -> bool:
    return _interrupt(stage, runner, signal.SIGINT)


def interrupt_twice(stage: Stage, runner: subprocess.Popen) -> bool:
    """Somebody who does not want to wait for a clean end."""
    begun = stage.begun(runner)
    runner.send_signal(signal.SIGINT)
    time.sleep(stage.draw.uniform(0.0, 0.05))
    runner.send_signal(signal.SIGINT)
    return _ended(stage, runner, begun, {INTERRUPTED, -signal.SIGINT})


def terminate_all(stage: Stage, runner: subprocess.Popen) -> bool:
    """As Slurm and systemd do: everybody is told to end, and nobody was killed by a fault of its own."""
    begun, found = stage.begun(runner), descendants(stage.started)
    stage.draw.shuffle(found)
    signal_all(found, signal.SIGTERM)
    return _ended(stage, runner, begun, {INTERRUPTED})


def start_second(stage: Stage, runner: subprocess.Popen) -> bool:
    _race(stage, [runner, stage.start()])
    return True


def stop_and_start_second(stage: Stage, runner: subprocess.Popen) -> bool:
    """The first one is stopped for longer than the second one waits."""
    if not processes.holders(stage.run.folder / ".lock", [psutil.Process(runner.pid)]):
        return False
    runner.send_signal(signal.SIGSTOP)
    if processes.holders(stage.run.folder / ".lock", [psutil.Process(runner.pid)]):
        stage.wait_for(stage.start(), {REFUSED}, "the run's runner is stopped, but there")
    runner.send_signal(signal.SIGCONT)
    return True


def stop_runner(stage: Stage, runner: subprocess.Popen) -> bool:
    runner.send_signal(signal.SIGSTOP)
    time.sleep(PATIENCE_SECONDS + 0.2)
    runner.send_signal(signal.SIGCONT)
    return True


def stop_worker(stage: Stage, runner: subprocess.Popen) -> bool:
    found = _choose(stage, workers(runner))
    if found is None:
        return False
    signal_all([found], signal.SIGSTOP)
    time.sleep(PATIENCE_SECONDS + 0.2)
    signal_all([found], signal.SIGCONT)
    return True


ACTIONS = (
    Action("SIGKILL of the runner", "runner", 30, kill_runner),
    Action("SIGKILL of the runner's process group", "runner", 10, kill_group),
    Action("SIGKILL of the runner beside a stopped worker", "runner", 5, kill_runner_of_stopped),
    Action("SIGKILL of the runner while a second one waits", "second", 3, take_over),
    Action("SIGKILL of the runner, then two runners at once", "second", 3, kill_and_start_two),
    Action("SIGKILL of all that hold the store", "holder", 8, kill_holders),
    Action("SIGKILL of every process", "holder", 5, kill_everything),
    Action("SIGKILL of the fork server", "forkserver", 10, kill_fork_server),
    Action("SIGKILL of a worker", "worker", 12, kill_worker),
    Action("SIGKILL of what watches over a worker", "worker", 5, kill_watcher),
    Action("SIGKILL of a worker, then of the runner", "worker", 4, kill_worker_and_runner),
    Action("SIGKILL of a child of a worker", "worker", 6, kill_child),
    Action("SIGTERM of the runner", "signal", 6, terminate, kills=False),
    Action("SIGINT of the runner", "signal", 6, interrupt, kills=False),
    Action("SIGINT of the runner, twice", "signal", 3, interrupt_twice, kills=False),
    Action("SIGTERM of every process", "signal", 3, terminate_all, kills=False),
    Action("SIGSTOP and SIGCONT of the runner", "stop", 2, stop_runner, kills=False),
    Action("SIGSTOP and SIGCONT of a worker", "stop", 2, stop_worker, kills=False),
    Action("a second runner", "second", 3, start_second, kills=False),
    Action("a second runner while the first is stopped", "second", 3, stop_and_start_second, kills=False),
)


def _kill_case(
    stage: Stage, runner: subprocess.Popen, choose: Callable[[psutil.Process], list[psutil.Process]]
) -> bool:
    """Kill a case by one of its processes: it is said to have run out of memory, and no other is."""
    worker = _choose(stage, workers(runner))
    if worker is None:
        return False
    signal_all([worker], signal.SIGSTOP)  # so that it is known what it had done
    case = case_of(stage.kept, worker.pid)
    over = any(note.pid == worker.pid and note.what == "end" for note in stage.kept.notes())
    if case is None:
        stage.kept.unknown += 1
    else:
        stage.kept.killed.add(case.id)
    signal_all(choose(worker), signal.SIGKILL)
    signal_all([worker], signal.SIGCONT)
    if case is None:
        return True
    deadline = time.monotonic() + PROMPT_SECONDS
    while case.id not in (results := stage.kept.results()):
        if time.monotonic() > deadline:
            raise Broken(f"the worker of case {case.seed} was killed, and no result says so")
        if runner.poll() is not None:
            raise Broken(f"the runner ended with code {runner.returncode} when a worker was killed")
        time.sleep(0.01)
    if not over and results[case.id].status != "out_of_memory":
        raise Broken(f"case {case.seed} was killed at work and is {results[case.id].status}")
    return True


def _dead(stage: Stage, runner: subprocess.Popen) -> bool:
    """The runner was killed, unless it had ended before."""
    stage.wait_for(runner, {-signal.SIGKILL, 0}, "killed")
    stage.clear()
    return True


def _interrupt(stage: Stage, runner: subprocess.Popen, number: int) -> bool:
    begun = stage.begun(runner)
    runner.send_signal(number)
    return _ended(stage, runner, begun, {INTERRUPTED})


def _ended(stage: Stage, runner: subprocess.Popen, begun: bool, codes: set[int]) -> bool:
    """The runner was told to end. Before it has `begun`, it dies as Python does then; or it was at its end anyway."""
    early = set() if begun else {-signal.SIGTERM, -signal.SIGINT, 1}
    stage.wait_for(runner, {0} | codes | early, "told to end")
    stage.clear()
    return True


def _race(stage: Stage, runners: list[subprocess.Popen]) -> None:
    """Of several runners one is in charge in the end, and the others are refused, or find nothing to do."""
    deadline = time.monotonic() + PROMPT_SECONDS
    while len(left := [runner for runner in runners if runner.poll() is None]) > 1:
        if time.monotonic() > deadline:
            raise Broken("of two runners none was refused")
        time.sleep(0.01)
    codes = sorted(runner.returncode for runner in runners if runner not in left)
    if not set(codes) <= {0, REFUSED} or (not left and codes == [REFUSED] * len(codes)):
        raise Broken(f"of {len(runners)} runners on one folder, {len(codes)} ended with codes {codes}")
    stage.runner = left[0] if left else next(runner for runner in runners if runner.returncode != REFUSED)


def _choose(stage: Stage, found: list[psutil.Process]) -> psutil.Process | None:
    return stage.draw.choice(found) if found else None
