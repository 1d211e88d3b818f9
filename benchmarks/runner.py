"""The runner: every case in a process of its own, and every end of a process a result with a status."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import psutil

from .cards import describe_mixers
from .case import Case, Plan
from .device import kind_of
from .environment import collect_environment, differences, end_of_start, usable_cores, utc_time
from .live import LiveRun, Reporter
from .runs import SCHEMA_VERSION, ResultLine, Run, RunError, RunLock, Status
from .worker import Inherited, RunCase, run_case, serve

# Imported once, by the process that the cases are forked from: a case starts in milliseconds, not in seconds.
PRELOADED = ("mixerzoo.benchmarks.suite", "mixerzoo.benchmarks.cli")
# What may change between two starts of one run: it decides how the cases are run, not what they mean.
FREE_TO_CHANGE = ("description", "jobs", "time_limit_seconds", "memory_limit_bytes")
_POLL_SECONDS = 0.5  # rare enough not to disturb what is measured
_STDERR_BYTES = 4000


Planner = Callable[[Mapping[str, ResultLine]], Plan]


class TimeIsUp(Exception):
    """A run was stopped because its own time was over; what is finished is kept, and it can go on."""


@dataclass(frozen=True)
class Limits:
    """jobs: cases at a time, None to choose. time_limit_seconds, memory_limit_bytes (resident): of one case.
    run_seconds: of this start of the run; what is at work then is stopped, and goes on at the next start."""

    jobs: int | None = None
    time_limit_seconds: float = 3600.0
    memory_limit_bytes: int | None = None
    run_seconds: float | None = None

    def choose_jobs(self, device: str, cases: int) -> int:
        """As many as there are cores, since a small model gains little from several; one on a GPU."""
        return self.jobs or (1 if kind_of(device) == "cuda" else max(1, min(usable_cores(), cases)))


def execute(
    planner: Planner,
    run: Run,
    suite: dict[str, Any],
    limits: Limits,
    reporter: Reporter,
    *,
    device: str,
    retry_failed: bool = False,
    reuse: Sequence[Run] = (),
    doctor: dict[str, Any] | None = None,
    run_case: RunCase = run_case,
    preloaded: Sequence[str] = PRELOADED,
) -> list[ResultLine]:
    """Run those cases of the plan that `run` has no result of (with `retry_failed`, no `ok` result), and those that
    their results add to it; return the results of all cases in their order.

    suite: the resolved suite, kept in the run's folder. run_case: runs one case, in its process; preloaded: modules
    that it needs. reuse: other runs whose results, and trained models, are taken over where the cases
    are the same; the environment says which. doctor: what the environment says of the doctor's findings.
    Raises `RunError` if the folder belongs to another suite or device, or another runner is at work in it. A
    `KeyboardInterrupt` leaves a run that can be resumed, and so does `TimeIsUp`.
    """
    check_folder(run, suite, device)
    with run.locked() as store:
        check_folder(run, suite, device)
        run.write_suite(suite)
        live = LiveRun()
        queue = _Queue(planner, run, store, live, retry_failed, reuse)
        jobs = limits.choose_jobs(device, len(queue.waiting))
        start = _write_environment(run, device, jobs, suite, doctor) if queue.waiting else None
        try:
            queue.begin()
            reporter.begin(live)
            pool = _Pool(run, store, limits, reporter, run_case, preloaded, queue, live)
            threads = max(1, usable_cores() // jobs)
            pool.work(jobs, threads, exclusive=False)
            pool.work(1, usable_cores(), exclusive=True)
        finally:
            reporter.end()
            if start is not None:
                environment = run.environment()
                ended = [*environment.get("finished", []), end_of_start(start)]
                run.write_environment({**environment, "finished": ended})
    return [queue.results[case.id] for case in queue.plan.cases]


class _Queue:
    """The cases that wait: those of the plan, which is made anew after every result."""

    def __init__(
        self,
        planner: Planner,
        run: Run,
        store: RunLock,
        live: LiveRun,
        retry_failed: bool,
        reuse: Sequence[Run],
    ) -> None:
        self.planner, self.run, self.store, self.live = planner, run, store, live
        self.results = {r.case: r for r in run.results() if r.status == "ok" or not retry_failed}
        self.started: set[str] = set()
        self.plan = planner(self.results)
        others = ((r, other) for other in reuse for r in other.results())
        self.elsewhere = {r.case: (r, other) for r, other in others if r.status == "ok"}

    def begin(self) -> None:
        self._adopt()
        self._write_plan()
        self.live.update(self.plan, self.results)

    @property
    def waiting(self) -> list[Case]:
        return [case for case in self.plan.cases if case.id not in self.results and case.id not in self.started]

    def next(self, exclusive: bool) -> Case | None:
        """The first case that waits and may run now; it counts as started."""
        case = next((case for case in self.waiting if case.exclusive == exclusive), None)
        if case is not None:
            self.started.add(case.id)
        return case

    def finished(self, result: ResultLine) -> None:
        self.results[result.case] = result
        before = len(self.plan.cases)
        self.plan = self.planner(self.results)
        self._adopt()
        if len(self.plan.cases) != before:
            self._write_plan()
        self.live.update(self.plan, self.results)

    def _adopt(self) -> None:
        """Take over what other runs hold of the plan, and of what follows from it."""
        while found := [case for case in self.waiting if case.reusable and case.id in self.elsewhere]:
            for case in found:
                result, other = self.elsewhere[case.id]
                source, target = other.checkpoint_folder(case.id), self.run.checkpoint_folder(case.id)
                if source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True)
                adopted = result.model_copy(update={"layout": case.label})
                self.store.append(adopted)
                self.results[case.id] = adopted
            self._note_reuse({self.elsewhere[case.id][1].folder for case in found})
            self.plan = self.planner(self.results)

    def _note_reuse(self, folders: set[Path]) -> None:
        environment = self.run.environment()
        reused = environment.setdefault("reused", {})
        for folder in sorted(folders):
            there = Run(folder).environment()
            reused[folder.name] = {"source": there.get("source"), "started": there.get("started")}
        self.run.write_environment(environment)

    def _write_plan(self) -> None:
        self.run.write_plan(self.plan.to_json())


def check_folder(run: Run, suite: dict[str, Any], device: str) -> None:
    """Raise `RunError` unless `run` is a new folder, or one of this suite and this device."""
    if not run.exists:
        # a run killed in its first moments leaves its lock and empty results
        if run.folder.is_file() or any(p != run.results_path and p.name[0] != "." for p in run.folder.glob("*")):
            raise RunError(f"{run.folder} is not empty and holds no run; choose another folder with --out")
        return
    changes = suite_differences(run.suite(), suite)
    if changes:
        shown = "\n  ".join(changes[:10]) + (f"\n  and {len(changes) - 10} more" if len(changes) > 10 else "")
        raise RunError(f"{run.folder} was made with another suite; choose another folder with --out\n  {shown}")
    if run.environment_path.is_file() and (was := kind_of(run.environment()["device"])) != kind_of(device):
        raise RunError(f"{run.folder} was made on {was}, not {device}; use --device {was} or another folder with --out")


def suite_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for every setting that differs and changes what is measured."""
    before, after = (_flat({k: v for k, v in s.items() if k not in FREE_TO_CHANGE}) for s in (old, new))
    return [
        f"{name}: {json.dumps(before.get(name))} there, {json.dumps(after.get(name))} here"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, key).items()}


def _write_environment(
    run: Run, device: str, jobs: int, suite: dict[str, Any], doctor: dict[str, Any] | None
) -> dict[str, Any]:
    """Where this start runs; a later start of the same run is added with whatever differs from the first."""
    now = collect_environment(device=device, jobs=jobs, threads=usable_cores(), tf32=suite.get("tf32", "auto"))
    if not run.environment_path.is_file():
        mixers = describe_mixers(suite.get("layouts", {}))
        run.write_environment({"schema_version": SCHEMA_VERSION, **now, **mixers, "doctor": doctor, "resumed": []})
        return now
    first = run.environment()
    again = {"started": now["started"], "command": now["command"], "jobs": jobs, "differs": differences(first, now)}
    run.write_environment({**first, "resumed": [*first["resumed"], again]})
    return now


@dataclass
class _Worker:
    """A case at work in its process."""

    case: Case
    process: BaseProcess
    connection: Connection
    stderr: IO[bytes]
    threads: int
    started: float = field(default_factory=time.monotonic)
    outcome: dict[str, Any] | None = None
    resident_bytes: int = 0
    killed: tuple[Status, str] | None = None


class _Pool:
    """Runs cases, several at a time, and stores their results."""

    def __init__(
        self,
        run: Run,
        store: RunLock,
        limits: Limits,
        reporter: Reporter,
        run_case: RunCase,
        preloaded: Sequence[str],
        queue: _Queue,
        live: LiveRun,
    ) -> None:
        self.run, self.store, self.limits, self.reporter, self.run_case = run, store, limits, reporter, run_case
        self.queue, self.live = queue, live
        self.deadline = time.monotonic() + (limits.run_seconds or math.inf)
        # a fork server rather than a plain fork: the runner has threads, and forking those is not safe
        linux = sys.platform == "linux"
        self.context = multiprocessing.get_context("forkserver") if linux else multiprocessing.get_context("spawn")
        self.context.set_forkserver_preload(list(preloaded))

    def work(self, jobs: int, threads: int, *, exclusive: bool) -> None:
        """Run the cases that wait, at most `jobs` at a time, each with `threads` threads."""
        workers: list[_Worker] = []
        try:
            while True:
                while len(workers) < jobs and (case := self.queue.next(exclusive)) is not None:
                    workers.append(self._start(case, threads))
                if not workers:
                    return
                if time.monotonic() > self.deadline:
                    raise TimeIsUp(f"{self.limits.run_seconds:.0f} seconds are over")
                # a process that ended is ready forever, so is its connection: both are read until they are empty
                ready = wait([w.process.sentinel for w in workers] + [w.connection for w in workers], _POLL_SECONDS)
                for worker in list(workers):
                    if worker.connection in ready:
                        self._receive(worker)
                    if worker.outcome is not None or not worker.process.is_alive():
                        self._receive(worker)
                        workers.remove(worker)
                        self._finish(worker)
                    else:
                        self._enforce_limits(worker)
                self.live.look()
                self.reporter.look()
        finally:
            for worker in workers:
                _end(worker)

    def _start(self, case: Case, threads: int) -> _Worker:
        self.reporter.before(case)
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its worker
        ours, theirs = self.context.Pipe()
        job = {
            "model": case.model,
            "measure": case.measure,
            "parameters": case.parameters,
            "seed": case.seed,
            "device": case.device,
            "tf32": case.tf32,
            "threads": threads,
            "folder": str(self.run.checkpoint_folder(case.parameters.get("trained") or case.id).resolve()),
        }
        arguments = (self.run_case, job, theirs, Inherited(stderr.fileno()), Inherited(self.store.fileno))
        process = self.context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self.live.start(case, process.pid or 0)
        return _Worker(case, process, ours, stderr, threads)

    def _receive(self, worker: _Worker) -> None:
        """Read what a worker has said so far."""
        with contextlib.suppress(EOFError, ConnectionResetError):  # it died; its exit code tells more
            while worker.outcome is None and worker.connection.poll():
                message = worker.connection.recv()
                if "outcome" in message:
                    worker.outcome = message["outcome"]
                else:
                    self.live.hear(worker.case, **message)

    def _enforce_limits(self, worker: _Worker) -> None:
        if worker.killed is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resident_bytes = psutil.Process(worker.process.pid).memory_info().rss
        time_limit, memory_limit = self.limits.time_limit_seconds, self.limits.memory_limit_bytes
        if time.monotonic() - worker.started > time_limit:
            worker.killed = "timeout", f"stopped after the suite's time limit of {time_limit:g} s"
        elif memory_limit is not None and worker.resident_bytes > memory_limit:
            held = f"{worker.resident_bytes / 1e9:.2f} GB"
            worker.killed = "out_of_memory", f"held {held}, the suite's limit is {memory_limit / 1e9:.2f} GB"
        if worker.killed is not None:
            _kill_group(worker)

    def _finish(self, worker: _Worker) -> None:
        case, seconds = worker.case, time.monotonic() - worker.started
        outcome = worker.outcome or _unreported_end(worker)
        _end(worker)  # nothing of a finished case may stay, its children included
        result = ResultLine(
            case=case.id,
            layout=case.label,
            measure=case.measure,
            parameters={
                **case.parameters,
                "model": case.model,
                "layout_line": case.layout_line,
                "device": case.device,
                "tf32": case.tf32,
                "threads": worker.threads,
            },
            seed=case.seed,
            seconds=round(seconds, 3),
            ended=utc_time(),
            **outcome,
        )
        self.store.append(result)
        self.live.finish(case, seconds)
        self.queue.finished(result)
        self.reporter.finished(case, result)


def _unreported_end(worker: _Worker) -> dict[str, Any]:
    """Status and error of a case whose process ended without a word."""
    if worker.killed is not None:
        status, error = worker.killed
        return {"status": status, "error": error}
    code = worker.process.exitcode or 0
    if code == -signal.SIGKILL:
        held = f"last seen with {worker.resident_bytes / 1e9:.2f} GB" if worker.resident_bytes else "early"
        error = f"killed by SIGKILL, which the runner did not send: the system ran out of memory ({held})"
        return {"status": "out_of_memory", "error": error}
    how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"
    worker.stderr.seek(max(0, worker.stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
    tail = worker.stderr.read().decode(errors="replace").strip()
    return {"status": "crashed", "error": f"{how}\n{tail}".strip()}


def _kill_group(worker: _Worker) -> None:
    worker.process.kill()  # it may not have made its group yet
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone already
        os.killpg(worker.process.pid or 0, signal.SIGKILL)


def _end(worker: _Worker) -> None:
    """Kill what is left of a case's processes, and let go of them."""
    _kill_group(worker)
    worker.process.join()
    worker.process.close()
    worker.connection.close()
    worker.stderr.close()
