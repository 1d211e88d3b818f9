"""Cases as jobs of Slurm: sent in arrays, and found again by the next start when this one dies."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..case import Case
from ..case_process import PRELOADED
from ..device import kind_of
from ..doing import Doing
from ..limits import Limits
from ..machine import Machine
from ..progress import complain
from ..result_lines import LineHead
from ..runs import Run, RunError, RunLock
from ..worker import RunCase, run_case
from .base import Ended, Event, Executor, Job, Lost, News
from .slurm_jobs import OVER, RUNS, WAITS, Jobs, Needs, State, SubmissionError, open_jobs
from .slurm_notes import Batch, Notes
from .slurm_options import SlurmOptions
from .slurm_task import NEWS_SECONDS, CaseTask

_TRIES = 10  # of a submission, when earlier ones of this start went well
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0  # seconds between them
_LOG_BYTES = 2000


@dataclass
class _Attempt:
    """A case in Slurm. over: when its job was first seen to be over without a result, None as long as it was not.
    heard: whether it has said something itself."""

    name: str
    job: str
    state: State
    over: float | None = None
    heard: bool = False


class SlurmExecutor(Executor):
    """Runs cases as jobs of Slurm, or as processes of this machine in the same way (`cluster` of the options).

    limits: those of a case, see `Limits`. device: of the cases, in a job: its first GPU is `cuda`. say: told in a line
    what happens to jobs when the run stops. run_case, preloaded: see `run_to_end`.
    """

    def __init__(
        self,
        limits: Limits,
        device: str,
        options: SlurmOptions,
        run_case: RunCase = run_case,
        preloaded: Sequence[str] = PRELOADED,
        say: Callable[[str], None] = complain,
    ) -> None:
        if ":" in device:
            raise ValueError(f"Slurm chooses the GPU of each job: give --device cuda, not {device}")
        self._limits, self._device, self._options = limits, device, options
        self._run_case, self._preloaded, self._say = run_case, preloaded, say
        self._known: dict[str, _Attempt] = {}  # by case: of earlier starts, and not asked for yet
        self._gathered: list[tuple[Case, int]] = []
        self._work: dict[str, _Attempt] = {}  # by case
        self._delivered: list[tuple[_Attempt, Ended | Lost]] = []
        self._events: list[Event] = []
        self._seen: dict[str, float] = {}
        self._looked = self._heard = 0.0
        self._sent, self._failures, self._next_try = False, 0, 0.0
        self._jobs_at_once = 1
        self._jobs: Jobs | None = None

    @property
    def jobs(self) -> int:
        return self._jobs_at_once

    def begin(self, run: Run, store: RunLock, cases: int) -> None:
        self._run = run
        self._notes = Notes(run.folder.resolve() / "slurm")
        self._jobs = open_jobs(self._options, self._notes.submitit)
        self._notes.make()
        self._jobs_at_once = max(1, min(self._options.array_parallelism, cases))
        for batch in self._notes.batches():
            self._find(batch, self._jobs)
        self._settle_stored(list(self._known.values()))
        if self._known:
            self._say(
                f"{len(self._known)} cases of an earlier start are in Slurm, or came to their end there meanwhile"
            )

    def room(self, exclusive: bool) -> int:
        assert self._jobs is not None
        return self._jobs.room - len(self._work) - len(self._gathered)

    def submit(self, case: Case, attempt: int) -> None:
        if case.id in self._known:
            self._work[case.id] = self._known.pop(case.id)
        else:
            self._gathered.append((case, attempt))

    def wait(self, seconds: float) -> list[Event]:
        self._settle_delivered()
        self._send()
        deadline = time.monotonic() + seconds
        assert self._jobs is not None
        while True:
            if time.monotonic() - self._looked >= self._jobs.pause_seconds:
                self._look(self._jobs)
                self._looked = time.monotonic()
            left = deadline - time.monotonic()
            if self._events or left <= 0:
                events, self._events = self._events, []
                return events
            time.sleep(min(left, self._jobs.pause_seconds))

    def stop(self) -> None:
        if self._jobs is None:
            return
        with contextlib.suppress(RunError):
            self._settle_stored([attempt for attempt, _ in self._delivered])
            self._notes.batches()
        going = [attempt for attempt in self._work.values() if attempt.name not in self._notes.ended_names()]
        self._gathered.clear()
        self._work.clear()
        if not going:
            return
        error = self._jobs.cancel([attempt.job for attempt in going])
        if error is None:
            # what ended in the meantime is kept for the next start
            ended = self._notes.ended_names()
            gone = [attempt for attempt in going if attempt.name not in ended]
            for attempt in gone:
                self._notes.forbid(attempt.name)
            self._notes.settle([attempt.name for attempt in gone], keep_starts=True)
            self._say(f"cancelled {len(gone)} job{'s' * (len(gone) != 1)}")
        else:
            self._say(f"{len(going)} jobs could not be cancelled ({error}); do it with: scancel {_shown(going)}")

    # sending

    def _send(self) -> None:
        """Submit what was gathered: an array for all cases with the same needs."""
        if not self._gathered or time.monotonic() < self._next_try:
            return
        groups: dict[Needs, list[tuple[Case, int]]] = {}
        for case, attempt in self._gathered:
            groups.setdefault(self._needs(case), []).append((case, attempt))
        self._gathered.clear()
        for needs, cases in groups.items():
            self._send_array(needs, cases)

    def _needs(self, case: Case) -> Needs:
        gpus = case.processes if kind_of(self._device) == "cuda" else 0
        return Needs(case.exclusive, gpus, self._limits.time_limit_seconds, self._limits.memory_limit_bytes)

    def _send_array(self, needs: Needs, cases: list[tuple[Case, int]]) -> None:
        assert self._jobs is not None
        batch = Batch(token=secrets.token_hex(4), cluster=self._options.cluster, cases=[case.id for case, _ in cases])
        self._notes.write_batch(batch)
        tasks = [self._task(name, case, attempt) for name, (case, attempt) in zip(batch.names, cases)]
        try:
            ids = self._jobs.send(tasks, needs, batch.token)
        except SubmissionError as error:
            self._not_sent(batch, cases, str(error))
            return
        self._notes.write_batch(batch.model_copy(update={"jobs": ids}))
        self._sent, self._failures = True, 0
        for case, name, job in zip(batch.cases, batch.names, ids):
            self._work[case] = _Attempt(name, job, State(WAITS))
            self._events.append(News(case, doing=Doing(f"waits in Slurm's queue, job {job}")))

    def _not_sent(self, batch: Batch, cases: list[tuple[Case, int]], error: str) -> None:
        """sbatch failed. It may still have been heard: what has begun is kept, the rest is forbidden and sent again."""
        assert self._jobs is not None
        self._find(batch, self._jobs)
        for case, attempt in cases:
            self.submit(case, attempt)
        self._failures += 1
        if not self._sent or self._failures >= _TRIES:
            raise RunError(f"Slurm took no jobs, sbatch says: {error}")
        self._next_try = time.monotonic() + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        for case, _ in self._gathered:
            self._events.append(News(case.id, doing=Doing("is to be submitted to Slurm again")))

    def _task(self, name: str, case: Case, attempt: int) -> CaseTask:
        limits, folder = self._limits, str(self._run.checkpoint_folder(case.checkpoint_id).resolve())
        job = Job(
            case, attempt, folder, self._options.cpus_per_task, limits.time_limit_seconds, limits.memory_limit_bytes
        )
        pause = min(NEWS_SECONDS, 5 * self._jobs.pause_seconds if self._jobs else NEWS_SECONDS)
        return CaseTask(str(self._notes.folder), name, job, self._run_case, self._preloaded, pause)

    # what an earlier start left

    def _find(self, batch: Batch, jobs: Jobs) -> None:
        """Take up what is open of a batch: what has ended, or may still."""
        if batch.cluster != self._options.cluster:
            raise RunError(
                f"jobs of this run are at work by --slurm cluster={batch.cluster}; go on with it, or cancel them and "
                f"remove {self._notes.folder}"
            )
        unbegun = []
        for place, name in self._notes.open_names(batch):
            if batch.jobs is not None:
                self._known[batch.cases[place]] = _Attempt(name, batch.jobs[place], State(WAITS))
            elif self._notes.forbid_unbegun(name):
                unbegun.append(name)
            else:  # submitted, though the runner died, or sbatch failed, before that was written down
                self._known[batch.cases[place]] = _Attempt(name, self._notes.starts(name)[0][0].job, State(RUNS))
        if batch.jobs is None and len(unbegun) == len(batch.cases):
            jobs.cancel_named(batch.token)
        self._notes.settle(unbegun, keep_starts=True)

    def _settle_stored(self, attempts: Sequence[_Attempt]) -> None:
        """Let go of those whose result stands in the store already, as the store alone can tell."""
        ended: dict[str, tuple[_Attempt, Ended]] = {}
        for attempt in attempts:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                outcome = self._notes.outcome(attempt.name)
                if isinstance(outcome, Ended):
                    ended[outcome.case] = attempt, outcome
        if not ended:
            return
        index = self._run.index()
        for case, (attempt, outcome) in ended.items():
            if case in index and _same(index[case], outcome):
                self._settle(attempt)
                self._known.pop(case, None)

    # what comes back

    def _look(self, jobs: Jobs) -> None:
        ended = self._notes.ended_names()
        for case, attempt in list(self._work.items()):
            if attempt.name in ended:
                self._collect(case, attempt)
        if self._work:
            self._hear(jobs)
            states = jobs.states([attempt.job for attempt in self._work.values()])
            for case, attempt in list(self._work.items()):
                self._judge(case, attempt, states[attempt.job], jobs)

    def _collect(self, case: str, attempt: _Attempt) -> bool:
        """Deliver what became of a case, if that is known."""
        try:
            outcome = self._notes.outcome(attempt.name)
        except (ValueError, KeyError, TypeError) as error:
            outcome = self._lost(case, attempt, f"its result cannot be read: {error}")
        if outcome is None or outcome.case != case:
            return False
        self._deliver(case, attempt, outcome)
        return True

    def _hear(self, jobs: Jobs) -> None:
        if time.monotonic() - self._heard < 5 * jobs.pause_seconds:
            return
        self._heard = time.monotonic()
        for name, news in self._notes.news(self._seen):
            attempt = self._work.get(news.case)
            if attempt is not None and attempt.name == name:
                attempt.heard = True
                self._events.append(news)

    def _judge(self, case: str, attempt: _Attempt, state: State, jobs: Jobs) -> None:
        """Take notice of a job's state: lost is what is over and, a while later, has left no result."""
        if state.phase == WAITS != attempt.state.phase:
            self._events.append(News(case, doing=Doing(f"waits in Slurm's queue, job {attempt.job}")))
        elif state.phase == RUNS != attempt.state.phase and not attempt.heard:
            self._events.append(News(case, doing=Doing(f"starts on {state.node or 'a machine'}, job {attempt.job}")))
        attempt.state = state
        if state.phase != OVER:
            attempt.over = None
            return
        attempt.over = attempt.over or time.monotonic()
        if time.monotonic() - attempt.over >= jobs.patience_seconds and not self._collect(case, attempt):
            self._deliver(case, attempt, self._end_without_result(case, attempt))

    def _deliver(self, case: str, attempt: _Attempt, outcome: Ended | Lost) -> None:
        if isinstance(outcome, Lost):
            self._notes.forbid(attempt.name)  # should Slurm bring the job back
        del self._work[case]
        self._delivered.append((attempt, outcome))
        self._events.append(outcome)

    def _end_without_result(self, case: str, attempt: _Attempt) -> Ended | Lost:
        """What a job that is over means that has written nothing."""
        starts, _ = self._notes.starts(attempt.name)
        if attempt.state.name == "OUT_OF_MEMORY" and starts:
            error = f"Slurm ended job {attempt.job}: it held more memory than it was given"
            outcome = {"status": "out_of_memory", "error": error, "backends": {}}
            seconds = (self._notes.last_sign(attempt.name) or starts[-1].time) - starts[-1].time
            return Ended(case, outcome, max(0.0, seconds), self._options.cpus_per_task, 0, starts[-1].machine)
        return self._lost(case, attempt, attempt.state.reason)

    def _lost(self, case: str, attempt: _Attempt, why: str) -> Lost:
        starts, _ = self._notes.starts(attempt.name)
        stops = sum(start.stopped is not None for start in starts)
        told = f"; it was told to stop {stops} times" if stops else ""
        machine: Machine | None = starts[-1].machine if starts else None
        last = self._notes.last_sign(attempt.name) or (starts[-1].time if starts else 0.0)
        seconds = max(0.0, last - starts[-1].time) if starts else 0.0
        return Lost(
            case, f"job {attempt.job}: {why}{told}{self._last_words(attempt, bool(starts))}", seconds,
            machine.name if machine else None,
        )  # fmt: skip

    def _last_words(self, attempt: _Attempt, started: bool) -> str:
        """The end of the job's log; where there is none, the likeliest reason."""
        assert self._jobs is not None
        log = self._jobs.log(attempt.job)
        with contextlib.suppress(OSError):
            with log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                text = file.read().decode(errors="replace").strip()
            return f"\n{text}\n(the end of {log})" if text else ""
        node = attempt.state.node or "the machine"
        seen = f"; it left no log: does {node} see {self._notes.folder}? A run must lie on a file system that all share"
        return "" if started else seen

    def _settle_delivered(self) -> None:
        """The runner, which calls again, has stored what it was given."""
        for attempt, outcome in self._delivered:
            if isinstance(outcome, Ended):
                self._settle(attempt)
            else:
                self._notes.settle([attempt.name], keep_starts=True)
        self._delivered.clear()

    def _settle(self, attempt: _Attempt) -> None:
        assert self._jobs is not None
        self._notes.settle([attempt.name])
        self._jobs.clear(attempt.job)


def _same(result: LineHead, ended: Ended) -> bool:
    return result.status == ended.outcome["status"] and result.seconds == round(ended.seconds, 3)


def _shown(attempts: Sequence[_Attempt]) -> str:
    """The ids for a command, those of an array by their number alone."""
    return " ".join(dict.fromkeys(attempt.job.partition("_")[0] for attempt in attempts))
