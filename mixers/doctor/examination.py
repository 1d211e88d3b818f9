"""The examination: which cases are open, children that prove them, then, alone on the machine, children that time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ops import verdicts
from ..ops.dispatch import Backend, Op
from ..ops.verdicts import Verdict
from .cases import DTYPES, Case, cases, make_verdict
from .children import Job, run_jobs
from .proof import FULL, INTERPRETED

TIME_LIMIT = 120.0
_MOST_CHILDREN = 8
# What libraries tune while others use the device is not to be kept.
_WHILE_PROVING = {"FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}

Listener = Callable[[str, int, int, Verdict], None]


@dataclass
class Diagnosis:
    """What is known of some ops on one device.

    machine: see `verdicts.describe`. verdicts: of the backends that must be proven, and of the portable ones that were
    timed beside them. unavailable: (op, backend, reason) of those that cannot run there at all.
    """

    device: str
    machine: dict[str, str | None]
    verdicts: list[Verdict] = field(default_factory=list)
    unavailable: list[tuple[str, str, str]] = field(default_factory=list)
    proving: set[tuple[str, str]] = field(default_factory=set)

    @property
    def failed(self) -> list[Verdict]:
        """Of backends that gave wrong results, crashed or did not come back."""
        bad = ("wrong", "crashed", "timed out")
        return [v for v in self.proven if v.outcome in bad or v.backward in bad]

    @property
    def proven(self) -> list[Verdict]:
        """The verdicts of backends that must be proven, whatever they say."""
        return [v for v in self.verdicts if (v.op, v.backend) in self.proving]


class Examination:
    """Of the backends of `ops` that must be proven, on one device.

    dtypes: names, see `DTYPES`. Sizes are small where Triton interprets its kernels on the CPU. again: prove what is
    known already. time_limit: seconds of one stage of a case (forward, backward, one timing). at_once: children that
    prove at the same time; None: up to 8, by the cores.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        device: torch.device,
        *,
        dtypes: Sequence[str] = DTYPES,
        again: bool = False,
        time_limit: float = TIME_LIMIT,
        at_once: int | None = None,
    ) -> None:
        unknown = [d for d in dtypes if d not in DTYPES]
        if unknown or not dtypes:
            raise ValueError(f"unknown dtype {', '.join(unknown)}; give some of {', '.join(DTYPES)}")
        self.ops = {op.name: op for op in ops if op.problems is not None}
        self.device, self.dtypes, self.again, self.time_limit = device, list(dtypes), again, time_limit
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.at_once = at_once or max(1, min(_MOST_CHILDREN, cores))
        self.threads = max(1, cores // self.at_once)
        self.interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        self._installed: dict[tuple[str, str], dict[str, str]] = {}
        self._all_cases = {name: self._plan(op) for name, op in self.ops.items()}
        self.planned = [(op, b, case) for op, b in self._backends("proven") for case in self._cases(op, b)]

    @property
    def open(self) -> list[tuple[Op, Case]]:
        """The cases of which nothing is known yet."""
        return [(op, case) for op, _, case in self.planned if self.again or self.known(op, case) is None]

    def run(self, listen: Listener = lambda *told: None) -> Diagnosis:
        """Prove what is open, time what is right and not timed, and keep it; returns all that is known.

        listen: told the work (`prove`, `time`), how many cases of how many are done, and what is known of the last.
        """
        self._work("prove", self._prove_jobs(), listen)
        self._work("time", self._time_jobs(), listen)
        return self.diagnosis()

    def diagnosis(self) -> Diagnosis:
        """All that is known by now."""
        found = Diagnosis(str(self.device), verdicts.describe(self.device))
        for op in self.ops.values():
            proven = (b for b in op.backends.values() if b.trust == "proven")
            reasons = ((b.name, self._why_not(b)) for b in proven)
            found.unavailable += [(op.name, name, reason) for name, reason in reasons if reason is not None]
        for op, backend in [*self._backends("proven"), *self._backends("always")]:
            if backend.trust == "proven":
                found.proving.add((op.name, backend.name))
            known = (self.known(op, case) for case in self._cases(op, backend))
            found.verdicts += [v for v in known if v is not None]
        return found

    def known(self, op: Op, case: Case) -> Verdict | None:
        """The verdict on a case, if there is one that still holds."""
        verdict = verdicts.of(self.device).find(op.name, case.key).get(case.backend)
        holds = verdict is not None and verdict.holds(op.source, self._versions(op, case.backend))
        return verdict if holds else None

    def _versions(self, op: Op, backend: str) -> dict[str, str]:
        """Of the backend's libraries, looked up once."""
        if (op.name, backend) not in self._installed:
            self._installed[op.name, backend] = op.backends[backend].versions
        return self._installed[op.name, backend]

    def _why_not(self, backend: Backend) -> str | None:
        with torch.no_grad():  # some run without gradients only: that is for the backward pass to find out
            return backend.why_not(self.device)

    def _backends(self, trust: str) -> list[tuple[Op, Backend]]:
        every = ((op, b) for op in self.ops.values() for b in op.backends.values())
        return [(op, b) for op, b in every if b.trust == trust and self._why_not(b) is None]

    def _plan(self, op: Op) -> list[Case]:
        """The cases of every backend of an op; of small heads only where kernels are interpreted."""
        if not any(b.trust == "proven" and self._why_not(b) is None for b in op.backends.values()):
            return []
        return cases(op, self.dtypes, op.widths[:1] if self.interpreted else op.widths)

    def _cases(self, op: Op, backend: Backend) -> list[Case]:
        return [case._replace(backend=backend.name) for case in self._all_cases[op.name]]

    def _prove_jobs(self) -> list[Job]:
        """The open cases of each backend, in as many parts as children may run."""
        jobs, left = [], self.open
        for op, backend in self._backends("proven"):
            mine = [case for other, case in left if other is op and case.backend == backend.name]
            size = -(-len(mine) // self.at_once)
            parts = (mine[i : i + size] for i in range(0, len(mine), max(1, size)))
            jobs += [Job(op.package, "prove", part, self._settings()) for part in parts]
        return jobs

    def _time_jobs(self) -> list[Job]:
        """Where a backend is right there is a choice to make: it and all portable ones are timed if they were not."""
        jobs = []
        rivals = self._backends("proven") + self._backends("always")
        worth = {(op.name, case.key) for op, _, case in self.planned if self._right(op, case)}
        for op, backend in rivals:
            mine = [case for case in self._cases(op, backend) if (op.name, case.key) in worth]
            mine = [case for case in mine if self._untimed(op, case, backend)]
            gradients = [backend.trust == "always" or self._right(op, case, gradient=True) for case in mine]
            if mine:
                jobs.append(Job(op.package, "time", mine, self._settings(), gradients))
        return jobs

    def _right(self, op: Op, case: Case, gradient: bool = False) -> bool:
        verdict = self.known(op, case)
        return verdict is not None and verdict.trusted(gradient)

    def _untimed(self, op: Op, case: Case, backend: Backend) -> bool:
        verdict = self.known(op, case)
        if backend.trust == "proven" and (verdict is None or verdict.outcome != "right"):
            return False
        return verdict is None or not verdict.seconds or self.again

    def _settings(self) -> dict[str, Any]:
        """Of every child. Interpreted kernels are never fast: what they take at one token says that."""
        sizes, lengths = (INTERPRETED, ["one"]) if self.interpreted else (FULL, list(verdicts.LENGTHS))
        return {"device": str(self.device), "threads": self.threads, "sizes": sizes, "lengths": lengths}

    def _work(self, work: str, jobs: list[Job], listen: Listener) -> None:
        total = sum(len(job.cases) for job in jobs)
        done = 0
        by_package = {op.package: op for op in self.ops.values()}

        def finished(job: Job, i: int) -> None:
            nonlocal done
            done += 1
            op, case = by_package[job.op], job.cases[i]
            before = self.known(op, case) if work == "time" else None
            start = {"outcome": "right"} if before is None else before.model_dump()
            verdict = make_verdict(op, case, {**start, **job.fields[i]})
            verdicts.of(self.device).keep([verdict])
            listen(work, done, total, verdict)

        proving = work == "prove"
        environment = {"OMP_NUM_THREADS": str(self.threads), **(_WHILE_PROVING if proving else {})}
        at_once = self.at_once if proving else 1
        run_jobs(jobs, at_once=at_once, time_limit=self.time_limit, environment=environment, finished=finished)
