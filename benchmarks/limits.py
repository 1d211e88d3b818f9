"""What a run may take."""

from __future__ import annotations

from dataclasses import dataclass

from .device import kind_of
from .environment import usable_cores


@dataclass(frozen=True)
class Limits:
    """jobs: cases at a time on a machine, None to choose. time_limit_seconds, memory_limit_bytes (resident, of all its
    processes together): of one case. run_seconds: of this start of the run; what is at work then is stopped, and goes
    on at the next start. attempts: how often a case is begun whose machine is lost."""

    jobs: int | None = None
    time_limit_seconds: float = 3600.0
    memory_limit_bytes: int | None = None
    run_seconds: float | None = None
    attempts: int = 3

    def choose_jobs(self, device: str, cases: int) -> int:
        """As many as there are cores, since a small model gains little from several; one on a GPU."""
        return self.jobs or (1 if kind_of(device) == "cuda" else max(1, min(usable_cores(), cases)))
