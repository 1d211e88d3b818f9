"""The runner: gives the cases that wait to an executor, and makes every end of one a result with a status."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from .cards import describe_mixers
from .case import Case
from .device import kind_of
from .environment import collect_environment, differences, end_of_start, usable_cores, utc_time
from .executors.base import Ended, Executor, Lost, News
from .limits import Limits
from .live import LiveRun, Reporter
from .machine import Machine
from .runs import SCHEMA_VERSION, ResultLine, Results, Run, RunError, RunLock
from .waiting import Planner, Queue

# What may change between two starts of one run: it decides how the cases are run, not what they mean.
FREE_TO_CHANGE = ("description", "jobs", "time_limit_seconds", "memory_limit_bytes")
_POLL_SECONDS = 0.5


class TimeIsUp(Exception):
    """A run was stopped because its own time was over; what is finished is kept, and it can go on."""


def execute(
    planner: Planner,
    run: Run,
    suite: dict[str, Any],
    limits: Limits,
    reporter: Reporter,
    executor: Executor,
    *,
    device: str,
    retry_failed: bool = False,
    reuse: Sequence[Run] = (),
    notes: dict[str, Any] | None = None,
) -> Results:
    """Run those cases of the plan that `run` has no result of (with `retry_failed`, no `ok` result), and those that
    their results add to it; return the results of all cases in their order.

    suite: the resolved suite, kept in the run's folder. executor: runs the cases, here or elsewhere. reuse: other runs
    whose results, and trained models, are taken over where the cases are the same; the environment says which. notes:
    what else the environment is to say, by name.
    Raises `RunError` if the folder belongs to another suite or device, or another runner is at work in it. A
    `KeyboardInterrupt` leaves a run that can be resumed, and so does `TimeIsUp`.
    """
    check_folder(run, suite, device)
    with run.locked() as store:
        check_folder(run, suite, device)
        run.write_suite(suite)
        live = LiveRun()
        queue = Queue(planner, run, store, live, retry_failed, reuse)
        start: dict[str, Any] | None = None
        try:
            if queue.count:
                executor.begin(run, store, queue.count)
                start = _write_environment(run, device, executor.jobs, suite, notes or {})
            queue.begin()
            reporter.begin(live)
            _Runner(run, store, queue, executor, limits, live, reporter).work()
        finally:
            executor.stop()
            reporter.end()
            if start is not None:
                environment = run.environment()
                ended = [*environment.get("finished", []), end_of_start(start)]
                run.write_environment({**environment, "finished": ended})
    index = run.index()
    return Results(run, [index[case.id] for case in queue.plan.cases])


class _Runner:
    """A run under way."""

    def __init__(
        self,
        run: Run,
        store: RunLock,
        queue: Queue,
        executor: Executor,
        limits: Limits,
        live: LiveRun,
        reporter: Reporter,
    ) -> None:
        self.run, self.store, self.queue, self.executor = run, store, queue, executor
        self.limits, self.live, self.reporter = limits, live, reporter
        self.deadline = time.monotonic() + (limits.run_seconds or math.inf)
        self.at_work: dict[str, Case] = {}
        self.machines = set(run.environment().get("machines", {})) if run.environment_path.is_file() else set()

    def work(self) -> None:
        """Run all cases: first those that may run beside others, then those that need a machine alone."""
        while self.queue.count:
            for exclusive in (False, True):
                self._work(exclusive)

    def _work(self, exclusive: bool) -> None:
        while True:
            while self.executor.room(exclusive) > 0 and (case := self.queue.next(exclusive)) is not None:
                self._submit(case)
            if not self.at_work:
                return
            if time.monotonic() > self.deadline:
                raise TimeIsUp(f"{self.limits.run_seconds:.0f} seconds are over")
            for event in self.executor.wait(_POLL_SECONDS):
                if isinstance(event, News):
                    self.live.hear(event)
                elif isinstance(event, Lost):
                    self._lost(event)
                else:
                    self._ended(event)
            self.reporter.look()

    def _submit(self, case: Case) -> None:
        self.reporter.before(case)
        self.at_work[case.id] = case
        self.executor.submit(case, self.queue.attempt(case))
        self.live.start(case)

    def _lost(self, event: Lost) -> None:
        case = self.at_work.pop(event.case)
        attempt = {"machine": event.machine, "ended": utc_time(), "seconds": round(event.seconds, 3), "why": event.why}
        self.live.leave(case)
        self.queue.again(case, attempt)
        if self.queue.attempt(case) > self.limits.attempts:
            taken = self.queue.next(case.exclusive)
            assert taken == case, "what was put back comes first"
            error = f"given up after {self.limits.attempts} attempts that were lost; the last one: {event.why}"
            self._store(case, {"status": "crashed", "error": error}, event.seconds)

    def _ended(self, event: Ended) -> None:
        case = self.at_work.pop(event.case)
        self.live.leave(case)
        self._note(event.machine)
        self.queue.lost.setdefault(case.id, []).extend(event.attempts)
        machine = {"name": event.machine.name, "kind": event.machine.kind}
        self._store(case, event.outcome, event.seconds, event.threads, machine=machine, peak_bytes=event.peak_bytes)

    def _store(
        self, case: Case, outcome: dict[str, Any], seconds: float, threads: int | None = None, **recorded: Any
    ) -> None:
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
                "threads": threads,
            },
            seed=case.seed,
            seconds=round(seconds, 3),
            ended=utc_time(),
            attempts=self.queue.lost.get(case.id, []),
            **recorded,
            **outcome,
        )
        self.store.append(result)
        self.queue.finished(case, result)
        self.reporter.finished(case, result)

    def _note(self, machine: Machine) -> None:
        """Say in the environment what a machine is, once."""
        if machine.name not in self.machines:
            environment = self.run.environment()
            known = {**environment.get("machines", {}), machine.name: {"kind": machine.kind, **machine.details}}
            self.run.write_environment({**environment, "machines": known})
            self.machines.add(machine.name)


def check_folder(run: Run, suite: dict[str, Any], device: str) -> None:
    """Raise `RunError` unless `run` is a new folder, or one of this suite and this device."""
    if not run.exists:
        if run.has_results or run.environment_path.is_file():
            raise RunError(f"{run.folder} has lost its suite.yaml; {run.repair} says what can be done")
        # a run killed in its first moments leaves its lock and empty results
        if run.folder.is_file() or any(p != run.results_path and p.name[0] != "." for p in run.folder.glob("*")):
            raise RunError(f"{run.folder} is not empty and holds no run; choose another folder with --out")
        return
    if run.has_results and not run.environment_path.is_file():
        raise RunError(f"{run.folder} has lost its environment.json; {run.repair} writes one that says so")
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
    run: Run, device: str, jobs: int, suite: dict[str, Any], notes: dict[str, Any]
) -> dict[str, Any]:
    """Where this start runs; a later start of the same run is added with whatever differs from the first."""
    now = collect_environment(device=device, jobs=jobs, threads=usable_cores(), tf32=suite.get("tf32", "auto"))
    if not run.environment_path.is_file():
        mixers = describe_mixers(suite.get("layouts", {}))
        run.write_environment({"schema_version": SCHEMA_VERSION, **now, **mixers, **notes, "resumed": []})
        return now
    first = run.environment()
    again = {"started": now["started"], "command": now["command"], "jobs": jobs, "differs": differences(first, now)}
    run.write_environment({**first, "resumed": [*first["resumed"], again]})
    return now
