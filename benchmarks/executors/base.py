"""What an executor is: it runs the cases that the runner gives it, and says what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from ..case import Case
from ..doing import Doing
from ..machine import Machine
from ..runs import Run, RunLock


@dataclass(frozen=True)
class Job:
    """One attempt at a case: all that the machine that runs it needs to know; plain values only.

    attempt: from 1. folder: of its checkpoints, absolute, the same on every machine. threads: that it may use.
    time_limit_seconds, memory_limit_bytes (resident, of all its processes together): None for no limit.
    """

    case: Case
    attempt: int
    folder: str
    threads: int
    time_limit_seconds: float = 3600.0
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class News:
    """What a case at work says of itself. case: its id. resident_bytes: of all its processes; cuda_bytes: of its
    tensors on a GPU, None if it said nothing of one."""

    case: str
    fraction: float = 0.0
    doing: Doing = field(default_factory=lambda: Doing("start"))
    resident_bytes: int = 0
    cuda_bytes: int | None = None


@dataclass(frozen=True)
class Ended:
    """A case is over, in whatever way. outcome: `status`, `metrics` or `error`, and `backends`, as in `ResultLine`.

    seconds: since its process started. peak_bytes: the most that its processes held together. attempts: those before
    it that the executor itself repeated, as in `ResultLine`.
    """

    case: str
    outcome: dict[str, Any]
    seconds: float
    threads: int
    peak_bytes: int
    machine: Machine
    attempts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Lost:
    """An attempt came to nothing for a reason that is not the case's own: its machine died, or what watched over it.

    machine: its name, None if that is not known.
    """

    case: str
    why: str
    seconds: float
    machine: str | None = None


Event = News | Ended | Lost


class Executor(ABC):
    """Where cases run. The runner uses it from one thread: begin, then submit and wait in turn, and stop at the end."""

    @property
    @abstractmethod
    def jobs(self) -> int:
        """About how many cases run at a time, for people; known after `begin`."""

    @abstractmethod
    def begin(self, run: Run, store: RunLock, cases: int) -> None:
        """Get ready to run cases of `run`. store: held by the runner. cases: how many wait, as far as is known.

        Raises `ValueError` that says what to do where no case can be run.
        """

    @abstractmethod
    def room(self, exclusive: bool) -> int:
        """How many more cases may be submitted now; of those that need a machine alone, or of the others."""

    @abstractmethod
    def submit(self, case: Case, attempt: int) -> None:
        """Run `case`, for the `attempt`th time. An exclusive one runs while no other does on its machine."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Event]:
        """What has happened, in its order; waits for something, at most so long. Every case that was submitted ends
        in one `Ended` or one `Lost`."""

    @abstractmethod
    def stop(self) -> None:
        """End whatever is at work, here and elsewhere; nothing of it may stay. Always called at last."""
