"""What a run says of itself while it goes on: `status.json` in its folder, and whether a runner is at work there."""

from __future__ import annotations

from pydantic import BaseModel, Field, ValidationError

from .doing import Doing
from .lock import is_locked
from .runs import Run, RunError

STATUS_FILE = "status.json"


class CaseAtWork(BaseModel):
    """A case at work. stage, values: what it is doing, see `Doing`. fraction: the share of it that is done.

    seconds: since its start; seconds_left: guessed from how the fraction rose, None if it did not.
    resident_bytes: of all its processes; cuda_bytes: of its tensors on a GPU, None if it said nothing of one.
    """

    case: str
    title: str
    layout: str
    measure: str
    seed: int
    exclusive: bool
    stage: str = ""
    values: dict[str, float | None] = Field(default_factory=dict)
    fraction: float = 0.0
    seconds: float
    seconds_left: float | None = None
    resident_bytes: int = 0
    cuda_bytes: int | None = None

    @property
    def doing(self) -> Doing:
        """What it is doing, without numbers that are none."""
        return Doing(self.stage, {name: value for name, value in self.values.items() if value is not None})


class RunStatus(BaseModel):
    """What a run is doing, or was when its runner stopped: the content of `status.json`.

    pid, host: of the runner. started, updated, ended: UTC times; ended is None until the runner stops by itself.
    again: the command that goes on with the run, in the folder `directory`.
    done: finished cases by status, those of earlier starts included.
    to_do: cases without a result, those at work included; more_may_follow: results may add some.
    seconds_left: of the whole run, None if no case has finished; at_least: some kinds of cases are not in it.
    """

    schema_version: int = 1
    pid: int
    host: str
    started: str
    updated: str
    ended: str | None = None
    again: list[str] = Field(default_factory=list)
    directory: str = ""
    done: dict[str, int] = Field(default_factory=dict)
    to_do: int = 0
    more_may_follow: bool = False
    seconds_left: float | None = None
    at_least: bool = False
    at_work: list[CaseAtWork] = Field(default_factory=list)


def read_status(run: Run) -> RunStatus | None:
    """What the last runner of `run` wrote; None if it wrote nothing. Raises `RunError` if it cannot be read."""
    path = run.folder / STATUS_FILE
    try:
        return RunStatus.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise RunError(f"{path} is damaged; {run.repair} sets it aside, a runner writes it anew") from None


def is_at_work(run: Run) -> bool:
    """Whether a runner holds the run's lock, or cases of one that was killed have not died yet."""
    return is_locked(run.folder)
