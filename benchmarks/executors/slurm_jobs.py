"""Jobs, through submitit: sending them, asking what became of them, cancelling them."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import logging
import math
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .slurm_options import SlurmOptions
from .slurm_task import CaseTask

if TYPE_CHECKING:
    from submitit.core.core import Executor as Submitter

_SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 60.0  # between two questions to Slurm, which has others to answer
_COMMAND_SECONDS = 60.0
_MINUTES_BESIDE = 10  # of a job, beside the case: starting, waiting for the machine
_BYTES_BESIDE = 1_500_000_000  # of a job, beside the case: who watches over it, and what cases are forked from
_AT_ONCE = 200  # ids in one command

WAITS, RUNS, OVER, UNKNOWN = "waits", "runs", "over", "unknown"
_STATES = {
    WAITS: ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    RUNS: ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"),
    UNKNOWN: ("UNKNOWN",),
}  # fmt: skip
_REASONS = {
    "BOOT_FAIL": "its machine did not start",
    "CANCELLED": "it was cancelled, though not by this run",
    "COMPLETED": "it ended and left no result",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "what watched over the case ended",
    "NODE_FAIL": "its machine failed",
    "PREEMPTED": "it had to give way to another job, and was not put back into the queue",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "the time of the job was over before that of the case; give it more with --slurm time=MINUTES",
}


class SubmissionError(Exception):
    """Jobs could not be submitted, or it is not known whether they were; the message is sbatch's."""


@dataclass(frozen=True)
class Needs:
    """What jobs of one array need. gpus: each. exclusive: a machine alone."""

    exclusive: bool
    gpus: int
    time_limit_seconds: float
    memory_limit_bytes: int | None


@dataclass(frozen=True)
class State:
    """Of a job. phase: `waits`, `runs`, `over` or `unknown`. name: Slurm's word. node: where, empty if not known."""

    phase: str
    name: str = ""
    node: str = ""

    @classmethod
    def of(cls, info: Mapping[str, str]) -> State:
        name = (info.get("State") or "UNKNOWN").split()[0].rstrip("+").upper()  # `CANCELLED by 1000`
        phase = next((phase for phase, names in _STATES.items() if name in names), OVER)
        node = info.get("NodeList", "")
        return cls(phase, name, "" if node.startswith("None") else node)

    @property
    def reason(self) -> str:
        """Why a job that is over left no result, for people."""
        return _REASONS.get(self.name, f"Slurm says {self.name}")


class Jobs(ABC):
    """Where jobs go."""

    pause_seconds: float  # between two looks at files
    patience_seconds: float  # how long a file of a job that is over may take to be seen here

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        self.options, self.folder = options, folder

    @property
    @abstractmethod
    def room(self) -> int:
        """How many jobs may be submitted at once."""

    @abstractmethod
    def send(self, tasks: Sequence[CaseTask], needs: Needs, token: str) -> list[str]:
        """Submit one array; the ids of its jobs. token: part of its name. Raises `SubmissionError`."""

    @abstractmethod
    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """What is known of jobs; asked now and then only, whenever it is called."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> str | None:
        """Cancel jobs; what went wrong, None if nothing did."""

    @abstractmethod
    def cancel_named(self, token: str) -> None:
        """Cancel what was sent with `token`, if it can be found."""

    def clear(self, job: str) -> None:
        """Remove the files that a finished job left."""
        for path in (*self.folder.glob(f"{job}_0_*"), self.folder / f"{job}_submitted.pkl"):
            with contextlib.suppress(OSError):
                path.unlink()

    def log(self, job: str) -> Path:
        """Where a job prints to."""
        return self.folder / f"{job}_0_log.err"


def open_jobs(options: SlurmOptions, folder: Path) -> Jobs:
    """The way to Slurm that the options name. Raises `ValueError` that says what is missing."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--executor slurm needs submitit: pip install 'mixerzoo[slurm]'")
    if "%" in str(folder) or not str(folder).isprintable():
        raise ValueError(f"Slurm reads a % in {str(folder)!r} as a placeholder; choose another folder with --out")
    if options.cluster == "local":
        return LocalJobs(options, folder)
    missing = [name for name in ("sbatch", "srun", "scancel") if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"there is no {' and no '.join(missing)} here: run this on a machine from which jobs are submitted to "
            "Slurm, or try it out with --slurm cluster=local"
        )
    return SlurmJobs(options, folder)


class SlurmJobs(Jobs):
    """Slurm, by its commands."""

    pause_seconds, patience_seconds = 2.0, 60.0

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        from submitit.slurm.slurm import SlurmInfoWatcher

        super().__init__(options, folder)
        _hush_submitit()
        self._read = SlurmInfoWatcher().read_info
        self._known: dict[str, dict[str, str]] = {}
        self._asked, self._pause = -math.inf, _SHORTEST_SECONDS

    @property
    def room(self) -> int:
        return self.options.queued

    def send(self, tasks: Sequence[CaseTask], needs: Needs, token: str) -> list[str]:
        import submitit

        # no requeue after a timeout: going on is the runner's decision, which counts attempts
        self._pause = _SHORTEST_SECONDS
        submitter = submitit.SlurmExecutor(self.folder, max_num_timeout=0, python=self.options.python)
        submitter.update_parameters(**parameters(self.options, needs, token))
        return _submit(submitter, tasks)

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        ids = list(ids)
        if time.monotonic() - self._asked >= self._pause:
            self._ask(ids)
            self._asked, self._pause = time.monotonic(), min(LONGEST_SECONDS, 2 * self._pause)
        return {job: State.of(self._known.get(job, {})) for job in ids}

    def _ask(self, ids: Sequence[str]) -> None:
        """Ask sacct about jobs, for whole arrays; and squeue, where there is no accounting or it does not know them."""
        arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in ids))
        answer, error = _command(["sacct", "--format=JobID,State,NodeList", "--parsable2", f"--jobs={arrays}"])
        told = self._read(answer) if error is None else {}
        if any(job not in told for job in ids):
            told = _squeue() | told
        self._known |= {job: told[job] for job in ids if job in told}

    def cancel(self, ids: Sequence[str]) -> str | None:
        for start in range(0, len(ids), _AT_ONCE):
            error = _command(["scancel", *ids[start : start + _AT_ONCE]])[1]
            if error is not None:
                return error
        return None

    def cancel_named(self, token: str) -> None:
        _command(["scancel", f"--user={getpass.getuser()}", f"--name={_name(token)}"])


class LocalJobs(Jobs):
    """Processes of this machine, by submitit's local executor: to try things out where there is no Slurm."""

    pause_seconds, patience_seconds = 0.1, 0.0

    @property
    def room(self) -> int:
        return min(self.options.queued, self.options.array_parallelism)

    def send(self, tasks: Sequence[CaseTask], needs: Needs, token: str) -> list[str]:
        import submitit

        _hush_submitit()
        submitter = submitit.LocalExecutor(self.folder, max_num_timeout=0, python=self.options.python)
        known = parameters(self.options, needs, token)
        chosen = {"timeout_min": known["time"], "setup": known.get("setup", ()), "signal_delay_s": 30}
        submitter.update_parameters(**chosen, gpus_per_node=needs.gpus)
        return _submit(submitter, tasks)

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        return {job: State(RUNS) if self._process(job) else State(OVER, "FAILED") for job in ids}

    def cancel(self, ids: Sequence[str]) -> str | None:
        processes = []
        for control in [process for job in ids if (process := self._process(job)) is not None]:
            with contextlib.suppress(psutil.Error):
                processes += [control, *control.children(recursive=True)]  # it goes first, and starts nothing again
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(processes, timeout=10)
        return f"processes {[process.pid for process in alive]} go on" if alive else None

    def cancel_named(self, token: str) -> None:
        """Nothing can be found: processes have no names."""

    def _process(self, job: str) -> psutil.Process | None:
        """The process that controls a job, while it is alive."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(job))
            if process.status() != psutil.STATUS_ZOMBIE and str(self.folder) in process.cmdline():
                return process
        return None


def parameters(options: SlurmOptions, needs: Needs, token: str) -> dict[str, Any]:
    """What submitit is told of an array, by its names of sbatch's options."""
    ours = {"cluster", "queued", "gpu_type", "python", "additional_parameters", "srun_args"}
    given = {name: value for name, value in options if name not in ours and value not in (None, [], {})}
    if needs.memory_limit_bytes is not None:
        given.setdefault("mem", f"{math.ceil((needs.memory_limit_bytes + _BYTES_BESIDE) / 2**20)}M")
    if needs.exclusive:
        given["exclusive"] = True
    if needs.gpus:
        given["gpus_per_node"] = f"{options.gpu_type}:{needs.gpus}" if options.gpu_type else needs.gpus
    return {
        "job_name": _name(token),
        "wckey": None,  # submitit has one of its own, which not every cluster takes
        "time": math.ceil(needs.time_limit_seconds / 60) + _MINUTES_BESIDE,
        **given,
        # a step does not inherit the job's number of CPUs since Slurm 22.05
        "srun_args": [f"--cpus-per-task={options.cpus_per_task}", *options.srun_args],
        "additional_parameters": {"requeue": True, **options.additional_parameters},
    }


def _name(token: str) -> str:
    return f"mixerzoo-{token}"


def _submit(submitter: Submitter, tasks: Sequence[CaseTask]) -> list[str]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return [job.job_id for job in submitter.submit_array(list(tasks))]
    except (FailedJobError, FailedSubmissionError) as error:
        raise SubmissionError(str(error).strip() or "sbatch failed without a word") from None


def _squeue() -> dict[str, dict[str, str]]:
    """All jobs of this user that Slurm holds, by id; none where it cannot be asked."""
    command = ["squeue", f"--user={getpass.getuser()}", "--noheader", "--array", "--format=%i|%T|%N"]
    lines = _command(command)[0].splitlines()
    rows = [line.strip().split("|") for line in lines]
    return {row[0]: {"State": row[1], "NodeList": row[2]} for row in rows if len(row) == 3}


def _command(words: list[str]) -> tuple[str, str | None]:
    """What a command prints, and what went wrong with it, None if nothing did."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return (
        done.stdout,
        None if done.returncode == 0 else done.stderr.strip() or f"{words[0]} ended with {done.returncode}",
    )


def _hush_submitit() -> None:
    """Its remarks would tear the table of the run."""
    if "SUBMITIT_LOG_LEVEL" not in os.environ:
        logging.getLogger("submitit").setLevel(logging.CRITICAL)
