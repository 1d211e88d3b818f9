"""What each step of a training reads: lengths, loads and tasks drawn anew, the same for every layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...mixers.limits import Real, Size
from ..tasks import AnyTask, Task

_STREAM = 11  # keeps these draws apart from those of the tasks


class Part(BaseModel):
    """A piece of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Draw(Part):
    """What a step may read: sequences of `length` tokens with `load` things to hold (None: the task's own load).

    weight: how often, against the other draws of the phase.
    """

    length: Size
    load: Size | None = None
    weight: Real = Field(default=1.0, gt=0)


class Phase(Part):
    """A stretch of the training, `share` of its steps, each of which takes one draw of the `mix`."""

    share: Real = Field(gt=0, le=1)
    mix: tuple[Draw, ...] = Field(min_length=1)


class MixedTask(Part):
    """A further task to train on. weight: how often, against the task itself, which has weight 1."""

    task: AnyTask
    weight: Real = Field(default=1.0, gt=0)


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What one step reads: `rows` sequences of `length` tokens of task `task` (0: the task itself, 1: the first of the
    mixture, ...), with `load`. windowed: softmax layers see a window in this step."""

    length: int
    load: int | None
    rows: int
    task: int
    windowed: bool

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def draw_plan(
    mix: Sequence[Draw], weights: Sequence[float], window_dropout: float, tokens: int, *, seed: int, step: int
) -> StepPlan:
    """Draw what step `step` reads, about `tokens` tokens; a function of the arguments alone.

    weights: of the tasks. One number is drawn for each choice, whether or not there is something to choose, so that
    a setting does not change what another one draws.
    """
    for_mix, for_task, for_window = np.random.default_rng([_STREAM, seed, step]).random(3)
    draw = mix[_pick([d.weight for d in mix], for_mix)]
    rows = max(1, tokens // draw.length)
    return StepPlan(draw.length, draw.load, rows, _pick(weights, for_task), bool(for_window < window_dropout))


def phase_at(phases: Sequence[Phase], done: float) -> Phase:
    """The phase of a step before which the share `done` of the steps lies."""
    ends = np.cumsum([phase.share for phase in phases])
    return phases[min(int(np.searchsorted(ends, done + 1e-9, side="right")), len(phases) - 1)]


def loaded(task: Task, load: int | None) -> Task:
    """`task` with `load`; a task without a load, or without another one asked for, as it is."""
    return task if load is None or task.load is None else task.with_load(load)


def check_fits(task: Task, length: int, load: int | None) -> None:
    """Raise `ValueError` if the task cannot be had at this length with this load."""
    try:
        loaded(task, load).check_length(length)
    except ValidationError as error:
        why = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise ValueError(f"the task {task!r} cannot have load {load}: {why}") from None


def _pick(weights: Sequence[float], uniform: float) -> int:
    ends = np.cumsum(weights)
    return min(int(np.searchsorted(ends, uniform * ends[-1], side="right")), len(weights) - 1)
