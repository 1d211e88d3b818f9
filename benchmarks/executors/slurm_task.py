"""What a job of Slurm does: it watches over one case, and leaves in the run's folder what became of it."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..case_process import PRELOADED, run_to_end
from ..machine import Machine, this_machine
from ..worker import RunCase, run_case
from .base import Ended, Job, Lost, News
from .slurm_notes import Notes, Start, interruptions

NEWS_SECONDS = 10.0  # between two news of a case: many jobs write to one file system
# Slurm's signals go to all processes of a job. The case may die of one before this process has heard of it, and is
# not to blame; then the job is killed or put back into the queue, which takes a moment, or the grace that is granted.
_SIGNAL_SECONDS, _GRACE_SECONDS = 2.0, 600.0
_TOLD = "Slurm told the job to stop: preempted, put back into the queue, or out of time"


@dataclass(frozen=True)
class CaseTask:
    """The function of a job. notes: the run's folder `slurm`. name: of the attempt in it.

    submitit calls it, and `checkpoint` when the job is told to stop: it is then put back into the queue, and goes on
    from the last checkpoint of its training.
    """

    notes: str
    name: str
    job: Job
    run_case: RunCase = run_case
    preloaded: Sequence[str] = PRELOADED
    news_seconds: float = NEWS_SECONDS

    def __call__(self) -> None:
        from submitit import JobEnvironment

        notes, machine = Notes(Path(self.notes)), this_machine(self.job.case.device)
        before = notes.begin(self.name, JobEnvironment().job_id, machine)
        if before is None:
            print("this case is another job's by now, or it is over: nothing to do")
        elif before and before[-1].stopped is None:
            notes.write_outcome(self.name, self._lost(notes, before[-1]))
        else:
            signal.signal(signal.SIGTERM, self._note_stop)
            self._run(notes, before, machine)

    def checkpoint(self) -> Any:
        """Called by submitit, amid the work, when the job is told to stop."""
        from submitit.core.utils import DelayedSubmission

        self._note_stop()
        return DelayedSubmission(self)

    def _run(self, notes: Notes, before: list[Start], machine: Machine) -> None:
        said = 0.0

        def heard(news: News) -> None:
            nonlocal said
            if time.monotonic() - said >= self.news_seconds:
                said = time.monotonic()
                notes.write_news(self.name, news)

        ended = run_to_end(self.job, heard, self.run_case, self.preloaded)
        if isinstance(ended, Lost) or ended.outcome["status"] == "crashed":
            time.sleep(_SIGNAL_SECONDS)
            if notes.starts(self.name)[0][-1].stopped is not None:
                time.sleep(_GRACE_SECONDS)
                ended = Lost(ended.case, f"{_TOLD}, and then did not", ended.seconds, machine.name)
        if isinstance(ended, Ended):
            ended = dataclasses.replace(ended, attempts=tuple(interruptions(before)))
        try:
            notes.write_outcome(self.name, ended)
        except (TypeError, ValueError) as error:  # a plug-in's metrics
            outcome = {"status": "crashed", "error": f"its metrics are not JSON: {error}", "backends": {}}
            assert isinstance(ended, Ended)
            notes.write_outcome(self.name, dataclasses.replace(ended, outcome=outcome))

    def _lost(self, notes: Notes, start: Start) -> Lost:
        """Slurm started the job again though it had not told it to stop."""
        until = notes.last_sign(self.name) or start.time
        why = f"{start.machine.name} failed, or was restarted, and Slurm put job {start.job} back into the queue"
        return Lost(self.job.case.id, why, max(0.0, until - start.time), start.machine.name)

    def _note_stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        # SIGTERM alone does not end the work: what time is left is used, and submitit acts on the signal that follows
        Notes(Path(self.notes)).note_stop(self.name, _TOLD)
