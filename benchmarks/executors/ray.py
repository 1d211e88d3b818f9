"""Cases as tasks of a Ray cluster: as many at a time as its machines take, and what is timed on a machine alone."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..case import Case
from ..case_process import PRELOADED, run_to_end
from ..device import kind_of
from ..doing import Doing
from ..limits import Limits
from ..machine import Machine, this_machine
from ..runs import Run, RunError, RunLock
from ..worker import RunCase, run_case
from .base import Ended, Event, Executor, Job, Lost, News
from .ray_cluster import NODE_LABEL, Cluster, Node, last_line

_NEWS_SECONDS = 1.0  # between two messages of one case
_FETCH_SECONDS = 10.0  # for a result that is there, or a message that must be
_DEAD_SECONDS = 10.0  # in which Ray says itself that a task died with its machine
_STOP_SECONDS = 5.0  # for tasks to end their cases, before they are killed
_BACK_AGAIN = 5  # times that a task may come back before its case started
_PAUSE_SECONDS = 1.0  # before it goes again, and twice as long each time: Ray takes a while to see that a machine died
_HEAD = "node:__internal_head__"  # of which the head of a cluster has 1.0
_WAITS = Doing("waits for a machine of the cluster")


@dataclass
class _Work:
    """A case that was submitted. nodes: the ids of those it may run on; alone: the one it has for itself.

    machine, started: where and when it began, None as long as that was not heard.
    """

    job: Job
    nodes: frozenset[str]
    alone: Node | None = None
    machine: Machine | None = None
    started: float | None = None
    stranded: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Of this attempt."""
        return self.job.case.id, self.job.attempt


class RayExecutor(Executor):
    """Runs cases on a Ray cluster: one of our own on this machine, or that at `address` (`auto` or `HOST:PORT`).

    A task watches over its case on the machine it came to, as the local executor does. Ray repeats none: an attempt
    that is lost with its machine is the runner's to count. limits, run_case, preloaded: as for `LocalExecutor`, where
    `jobs` is how many cases each machine runs at a time. Raises `ValueError` where Ray is not installed.
    """

    def __init__(
        self,
        address: str | None,
        limits: Limits,
        device: str,
        run_case: RunCase = run_case,
        preloaded: Sequence[str] = PRELOADED,
    ) -> None:
        if ":" in device:
            raise ValueError(f"--device {device} is one GPU of one machine; on a Ray cluster give --device cuda")
        self._cluster = Cluster(address, device)
        self._ray = self._cluster.ray
        self._limits, self._device, self._how = limits, device, (run_case, tuple(preloaded))
        self._work: dict[Any, _Work] = {}
        self._came_back: dict[tuple[str, int], int] = {}
        self._later: list[tuple[float, Job]] = []
        self._events: list[Event] = []
        self._threads = 1
        self._letters: Any = None
        self._deaf = False  # letters were lost: what was not heard may have happened
        self._asked = 0.0

    @property
    def jobs(self) -> int:
        return sum(self._slots(node) for node in self._cluster.nodes.values())

    def begin(self, run: Run, store: RunLock, cases: int) -> None:
        self._run = run
        self._cluster.begin(run.folder)
        self._threads = self._choose_threads(cases)
        # on the head, without which there is no cluster
        self._mailbox = self._ray.remote(_Mailbox).options(
            num_cpus=0, resources={_HEAD: 0.001}, max_restarts=-1, max_pending_calls=10_000
        ).remote()  # fmt: skip

    def room(self, exclusive: bool) -> int:
        jobs = [*(work.job for work in self._work.values()), *(job for _, job in self._later)]
        alone = sum(job.case.exclusive for job in jobs)
        if exclusive:
            return 0 if len(jobs) > alone else len(self._cluster.nodes) - alone
        # some more than can run: a machine that is done with one goes on with the next at once
        return 0 if alone else self.jobs + self.jobs // 2 + 2 - len(jobs)

    def submit(self, case: Case, attempt: int) -> None:
        nodes = [node for node in self._cluster.nodes.values() if node.sees_folder or not _needs_folder(case)]
        if not nodes:
            raise RunError(
                f"{case.title} keeps its model in {self._run.folder.resolve()}, which no machine of the Ray cluster "
                "sees; give an --out on a file system that all of them share"
            )
        if case.exclusive:
            self._submit_alone(case, attempt, min(nodes, key=lambda node: node.alone))
        else:
            self._submit_beside(case, attempt, nodes)

    def wait(self, seconds: float) -> list[Event]:
        self._cluster.look()
        self._submit_again()
        self._read_letters()
        self._look_for_stranded()
        refs = [*self._work]
        patience = 0.0 if self._events else seconds
        if refs:
            self._ray.wait(refs, num_returns=1, timeout=patience)
            for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                self._over(ref)
        else:
            time.sleep(patience)
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        refs = [*self._work]
        try:
            for ref in refs:  # an exception in the task, which ends its case and all that it started
                self._ray.cancel(ref)
            late = self._ray.wait(refs, num_returns=len(refs), timeout=_STOP_SECONDS)[1] if refs else []
            for ref in late:
                self._ray.cancel(ref, force=True)
        finally:
            self._work.clear()
            self._later.clear()
            self._cluster.close()

    def _choose_threads(self, cases: int) -> int:
        """Of one process of a case that runs beside others."""
        nodes = self._cluster.nodes.values()
        if self._limits.jobs is not None:
            return max(1, min(node.cores // self._limits.jobs for node in nodes))
        if kind_of(self._device) == "cuda":
            return max(1, min(node.cores // node.gpus for node in nodes))
        return max(1, min(sum(node.cores for node in nodes) // max(1, cases), *(node.cores for node in nodes)))

    def _slots(self, node: Node) -> int:
        """How many cases run on `node` at a time."""
        memory = self._limits.memory_limit_bytes
        most = [node.cpus // self._threads]
        most += [node.gpus] if kind_of(self._device) == "cuda" else []
        most += [int(node.memory_bytes // memory)] if memory and node.memory_bytes else []
        return max(1, min(most))

    def _submit_alone(self, case: Case, attempt: int, node: Node) -> None:
        group = self._cluster.reserve(node)
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
        options = {"num_cpus": node.cpus, **self._gpus(case, node), "scheduling_strategy": strategy}
        work = _Work(self._job(case, attempt, node.cores), frozenset({node.id}), alone=node)
        self._start(work, options)

    def _submit_beside(self, case: Case, attempt: int, nodes: list[Node]) -> None:
        for node in self._cluster.nodes.values():
            self._cluster.give_back(node)
        # what no machine has is not asked for: there it ends as it would with any other executor
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus, node.memory_bytes))
        threads = min(self._threads, largest.cores)
        cpus, gpus = min(largest.cpus, threads * case.processes), self._gpus(case, largest)
        memory = min(self._limits.memory_limit_bytes or 0, int(largest.memory_bytes))
        fit = frozenset(
            node.id
            for node in nodes
            if node.cpus >= cpus and node.gpus >= gpus.get("num_gpus", 0) and node.memory_bytes >= memory
        )
        selector = {NODE_LABEL: f"in({','.join(sorted(fit))})"}
        options = {"num_cpus": cpus, **gpus, "memory": memory or None, "label_selector": selector}
        self._start(_Work(self._job(case, attempt, threads), fit), options)

    def _submit_again(self) -> None:
        """What came back before it started, after a while."""
        due = [job for when, job in self._later if when <= time.monotonic() and self._cluster.nodes]
        self._later = [(when, job) for when, job in self._later if job not in due]
        for job in due:
            self.submit(job.case, job.attempt)

    def _gpus(self, case: Case, node: Node) -> dict[str, int]:
        return {"num_gpus": min(case.processes, node.gpus)} if kind_of(case.device) == "cuda" else {}

    def _job(self, case: Case, attempt: int, threads: int) -> Job:
        limits, folder = self._limits, str(self._run.checkpoint_folder(case.checkpoint_id).resolve())
        return Job(case, attempt, folder, threads, limits.time_limit_seconds, limits.memory_limit_bytes)

    def _start(self, work: _Work, options: dict[str, Any]) -> None:
        task = self._ray.remote(_watch).options(max_retries=0, name=work.job.case.id, **options)
        self._work[task.remote(work.job, self._mailbox, *self._how)] = work
        self._events.append(News(work.job.case.id, doing=_WAITS))

    def _over(self, ref: Any) -> None:
        """A task has ended: what became of its case."""
        try:
            event = self._ray.get(ref, timeout=_FETCH_SECONDS)
        except Exception as error:  # of whatever kind: it must be told, or the case would never end
            self._read_letters_now()
            self._failed(self._forget(ref), error)
        else:
            self._forget(ref)
            self._events.append(event)

    def _forget(self, ref: Any) -> _Work:
        work = self._work.pop(ref)
        if work.alone is not None:
            self._cluster.leave(work.alone)
        return work

    def _failed(self, work: _Work, error: Exception) -> None:
        """A task came to nothing."""
        case, errors = work.job.case, self._ray.exceptions
        if work.machine is None or work.started is None:
            self._never_heard_of(work, error)
            return
        seconds = time.monotonic() - work.started
        if isinstance(error, errors.OutOfMemoryError):
            outcome = {"status": "out_of_memory", "error": f"stopped by Ray: {_first_line(error)}", "backends": {}}
            self._events.append(Ended(case.id, outcome, seconds, work.job.threads, 0, work.machine))
        else:
            self._events.append(Lost(case.id, self._reason(error), seconds, work.machine.name))

    def _never_heard_of(self, work: _Work, error: Exception) -> None:
        """A task came to nothing whose case did not start, as far as is known: it goes again, and costs no attempt."""
        times = self._came_back.get(work.key, 0)
        self._came_back[work.key] = times + 1
        if self._deaf:
            self._events.append(Lost(work.job.case.id, self._reason(error), 0.0))
        elif times < _BACK_AGAIN:
            self._later.append((time.monotonic() + _PAUSE_SECONDS * 2**times, work.job))
        else:
            self._events.append(Lost(work.job.case.id, f"it never started: {self._reason(error)}", 0.0))

    def _reason(self, error: Exception) -> str:
        errors = self._ray.exceptions
        if isinstance(error, errors.NodeDiedError | errors.TaskUnschedulableError):
            return "its machine died, or left the cluster"
        if isinstance(error, errors.WorkerCrashedError):
            return "the process that watched over it was killed"
        if isinstance(error, errors.TaskCancelledError):
            return "its task was cancelled by somebody else"
        if isinstance(error, errors.ObjectLostError | errors.GetTimeoutError):
            return "its result was lost with the machine that held it"
        return f"{type(error).__name__}: {last_line(error)}"

    def _look_for_stranded(self) -> None:
        """Tasks whose machines are all gone: Ray says so of those that ran; others would wait forever."""
        for ref, work in list(self._work.items()):
            if work.nodes & self._cluster.nodes.keys():
                continue
            work.stranded = work.stranded or time.monotonic()
            if time.monotonic() - work.stranded > _DEAD_SECONDS:
                self._ray.cancel(ref, force=True)
                self._failed(self._forget(ref), self._ray.exceptions.NodeDiedError("it left the cluster"))

    def _read_letters(self) -> None:
        """Take what cases have said; that is at most about a second old."""
        if self._letters is None and self._work and time.monotonic() - self._asked > _NEWS_SECONDS / 2:
            self._ask_for_letters()
        self._take_letters(0)

    def _read_letters_now(self) -> None:
        """Take all that cases have said until now."""
        self._take_letters(_FETCH_SECONDS)
        self._ask_for_letters()
        self._take_letters(_FETCH_SECONDS)

    def _ask_for_letters(self) -> None:
        self._asked = time.monotonic()
        with contextlib.suppress(Exception):  # news are not worth a run; Ray starts the mailbox again
            self._letters = self._mailbox.take.remote()

    def _take_letters(self, seconds: float) -> None:
        if self._letters is None or not self._ray.wait([self._letters], timeout=seconds)[0]:
            return
        asked, self._letters = self._letters, None
        try:
            letters = self._ray.get(asked, timeout=_FETCH_SECONDS)
        except Exception:
            self._deaf = True
            return
        for work in self._work.values():
            self._read(work, *letters.get(work.key, (None, None, 0.0)))

    def _read(self, work: _Work, machine: Machine | None, news: News | None, seconds: float) -> None:
        if machine is not None:
            work.machine, work.started = machine, work.started or time.monotonic() - seconds
        if news is not None:
            self._events.append(news)


def _needs_folder(case: Case) -> bool:
    """Whether it keeps a model in the run's folder for others, or needs one that another left there."""
    return case.reusable or case.checkpoint_id != case.id


def _watch(job: Job, mailbox: Any, run_case: RunCase, preloaded: Sequence[str]) -> Ended | Lost:
    """The task: watches over a case on the machine that it came to."""
    # the process of a case would import the main module of Ray's worker, and with it all of Ray
    vars(sys.modules["__main__"]).pop("__file__", None)
    case = dataclasses.replace(job.case, device=kind_of(job.case.device))  # Ray shows it the GPUs that it may use
    machine = this_machine(case.device)
    try:
        letters = _Letters(mailbox, (case.id, job.attempt), machine)
        return run_to_end(dataclasses.replace(job, case=case), letters.send, run_case, preloaded)
    except Exception as error:  # ours, not the case's; with a machine it can be told from one that died
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return Ended(case.id, {"status": "crashed", "error": text, "backends": {}}, 0.0, job.threads, 0, machine)


class _Letters:
    """How a task tells of its case, without ever failing for it."""

    def __init__(self, mailbox: Any, key: tuple[str, int], machine: Machine) -> None:
        self._mailbox, self._key, self._machine, self._last = mailbox, key, machine, 0.0
        with contextlib.suppress(Exception):
            # that it has started must be known before it can kill its machine; `ray.get` would give its CPUs away
            mailbox.put.remote(key, machine, None).future().result(timeout=_FETCH_SECONDS)

    def send(self, news: News) -> None:
        if time.monotonic() - self._last >= _NEWS_SECONDS:
            self._last = time.monotonic()
            with contextlib.suppress(Exception):
                self._mailbox.put.remote(self._key, self._machine, news)


class _Mailbox:
    """The latest of each attempt at a case; an actor of Ray."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, int], tuple[Machine, News | None, float]] = {}

    def put(self, key: tuple[str, int], machine: Machine, news: News | None) -> None:
        self._latest[key] = (machine, news, time.monotonic())

    def take(self) -> dict[tuple[str, int], tuple[Machine, News | None, float]]:
        """What has come since the last time, and how many seconds ago."""
        latest, self._latest = self._latest, {}
        now = time.monotonic()
        return {key: (machine, news, now - then) for key, (machine, news, then) in latest.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
