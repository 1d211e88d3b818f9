"""The settings of a training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from ...mixers.limits import Count, Real, Size
from ...models import CompileMode
from ..precision import Precision, resolve
from ..tasks import Batch, Task
from .curriculum import Draw, MixedTask, Part, Phase, StepPlan, check_fits, draw_plan, loaded, phase_at
from .loggers import Tracker, check_trackers

Parallel = Literal["none", "ddp", "fsdp"]


def _read_compile(given: Any) -> Any:
    """YAML reads `off` as false, and older suites say true for what is `default` now."""
    if given is True:
        return "default"
    return False if given == "off" else given


Compile = Annotated[Literal[False] | CompileMode, BeforeValidator(_read_compile)]
"""`off` (false), or the mode of `torch.compile`: `default` or `max-autotune`."""

EVALUATIONS = 20  # during a training with a bar, unless the bar says otherwise


class Bar(Part):
    """What a model must reach to count as taught: `accuracy` on held-out data at one length and load.

    length: None: the greatest length of the last phase, or the training's. load: None: the greatest load that the
    curriculum has at that length, else the task's. examples: sequences of an evaluation.
    every: steps between evaluations on validation data; None: a twentieth of the steps.
    stop: training ends at the first of them that reaches the bar, and by `margin` more.
    """

    accuracy: Real = Field(default=0.95, gt=0, le=1)
    length: Size | None = None
    load: Size | None = None
    examples: Count = 64
    every: Count | None = None
    stop: bool = True
    margin: Real = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accuracy + self.margin > 1:
            raise ValueError(f"accuracy + margin must be at most 1, got {self.accuracy} + {self.margin}")
        return self


class TrainingSettings(Part):
    """How a model is trained: linear warm-up, then a decaying rate, clipped gradients; every default is a plain AdamW
    training at one length.

    steps; batch, length: a step reads `batch * length` tokens.
    curriculum: phases by share of the steps; each step draws a length and a load of its phase's mix, and reads as many
        sequences as `batch * length` tokens make (one at least). Without: `batch` sequences of `length` tokens.
    mixture: further tasks; each step draws one of all by weight, the task itself having weight 1.
    bar: evaluates during the training and at its end, and may end it early.
    optimizer: `adamw`, or `muon` for the matrices within the layers and AdamW for the rest.
    learning_rate: at its peak. warmup: share of the steps. schedule: `cosine` to zero, or `wsd`: constant, and over the
        last share `decay` of the steps linearly towards zero (Hu et al. 2024, MiniCPM, arXiv 2404.06395).
    weight_decay: on matrices only (parameters of two dimensions or more). clip: largest 2-norm of the gradient.
    accumulate: parts in which a step's sequences are read, to save memory; the gradient is that of the whole.
    precision: `bfloat16` trains and evaluates under autocast, parameters stay float32; `auto`: that on a CUDA device,
        else `float32`.
    compile: `off`, or train through `torch.compile` in its mode `default` or `max-autotune`.
    checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
    window_dropout: probability of a step in which softmax layers see only the last `dropout_window` tokens (Zhao &
        Jones 2026, arXiv 2601.00671: 0.9 and 512).
    parallel: `ddp` or `fsdp` (FSDP2) for several processes, each of which reads its part of the rows. processes: how
        many a case of a suite starts; `mixerzoo train` leaves it to `torchrun`.
    save_every: steps between saves that a killed training resumes from; None: by the clock, every ten seconds, or so
        seldom that saving takes a hundredth of the time.
    log_to: trackers that the training logs to, beside the lines in its folder; see `Log`.
    """

    steps: Count = 1000
    batch: Size = 32
    length: Size = 256
    curriculum: tuple[Phase, ...] = ()
    mixture: tuple[MixedTask, ...] = ()
    bar: Bar | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Real = Field(default=1e-3, gt=0)
    warmup: Real = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: Real = Field(default=0.2, ge=0, le=1)
    weight_decay: Real = Field(default=0.1, ge=0)
    clip: Real = Field(default=1.0, gt=0)
    accumulate: Count = 1
    precision: Precision = "auto"
    compile: Compile = False
    checkpoint_activations: bool = False
    window_dropout: Real = Field(default=0.0, ge=0, le=1)
    dropout_window: Size = 512
    parallel: Parallel = "none"
    processes: int = Field(default=1, ge=1, le=1024, validate_default=True)
    save_every: Count | None = None
    log_to: tuple[Tracker, ...] = ()

    @field_validator("processes")
    @classmethod
    def _check_processes(cls, processes: int, info: ValidationInfo) -> int:
        """Here, and not with the rest, so that the message is about this setting."""
        given = info.data  # without those that are wrong themselves
        if processes > 1 and given.get("parallel") == "none":
            raise ValueError("several processes need parallel: ddp or parallel: fsdp")
        if processes > 1 and {"batch", "length", "curriculum"} <= given.keys():
            draws = [draw.length for phase in given["curriculum"] for draw in phase.mix]
            longest = max(draws, default=given["length"])
            if (rows := max(1, given["batch"] * given["length"] // longest)) < processes:
                raise ValueError(f"they cannot share a step of {rows} sequences of {longest} tokens; raise batch")
        return processes

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Trainings by one process do not say so: those of before there was the choice keep their ids."""
        fields = dump(self)
        return {name: value for name, value in fields.items() if name != "processes" or value > 1}

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        shares = sum(phase.share for phase in self.curriculum)
        if self.curriculum and not math.isclose(shares, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the curriculum's phases must sum to 1, got {shares:g}")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup + decay must be at most 1 for wsd, got {self.warmup} + {self.decay}")
        if self.parallel == "fsdp":
            for name, given, needed in (("optimizer", self.optimizer, "adamw"), ("compile", self.compile, False)):
                if given != needed:
                    raise ValueError(f"parallel: fsdp goes with {name}: {needed} only, got {given}; take ddp")
        return self

    @property
    def tokens(self) -> int:
        """The budget in tokens. Lengths that do not divide `batch * length` leave a few of them unread."""
        return self.steps * self.batch * self.length

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Every length and load that a step may have."""
        return tuple(draw for phase in self.curriculum for draw in phase.mix) or (Draw(length=self.length),)

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations, where there is a bar."""
        return (self.bar and self.bar.every) or max(1, self.steps // EVALUATIONS)

    def bar_at(self, task: Task) -> tuple[int, int | None]:
        """Length and load at which a bar is set; load None for a task without load."""
        bar = self.bar or Bar()
        last = max(draw.length for draw in self.curriculum[-1].mix) if self.curriculum else self.length
        length = bar.length or last
        loads = [draw.load or task.load or 0 for draw in self.draws if draw.length == length]
        load = bar.load or max(loads, default=0) or task.load
        return length, None if task.load is None else load

    def check(self, task: Task) -> None:
        """Raise `ValueError` if some step, or the bar, asks for what `task` or the mixture cannot have, or a tracker is
        not installed."""
        check_trackers(self.log_to)
        for each in (task, *(mixed.task for mixed in self.mixture)):
            if self.compile and each.packs:
                raise ValueError(
                    f"compile is for sequences that all look alike, and {each!r} packs documents; take off"
                )
            for draw in self.draws:
                _refuse_load(each, draw.load, alone=each is task)
                check_fits(each, draw.length, draw.load)
        if self.bar is not None:
            _refuse_load(task, self.bar.load, alone=True)
            check_fits(task, *self.bar_at(task))

    @property
    def alone(self) -> TrainingSettings:
        """The same training by this process alone."""
        return self.model_copy(update={"parallel": "none", "processes": 1})

    def on(self, device: str) -> TrainingSettings:
        """The same training with its precision decided, where that is left to the device."""
        return self.model_copy(update={"precision": resolve(self.precision, device)})

    def shortened(self, share: float) -> TrainingSettings:
        """The same training in that share of the steps, without a bar."""
        steps = max(1, round(share * self.steps))
        return self.model_copy(update={"steps": steps, "bar": None, "save_every": None})

    def last_points(self, task: Task) -> list[tuple[Task, int, float]]:
        """What the training ends with: the task at its load, the length, and the weight, for each draw."""
        mix = self.curriculum[-1].mix if self.curriculum else self.draws
        return [(loaded(task, draw.load), draw.length, draw.weight) for draw in mix]

    def plan(self, step: int, seed: int) -> StepPlan:
        """What step `step`, counted from 0, reads; the same for every model that is trained with this seed."""
        mix = phase_at(self.curriculum, step / self.steps).mix if self.curriculum else self.draws
        weights = [1.0, *(mixed.weight for mixed in self.mixture)]
        return draw_plan(mix, weights, self.window_dropout, self.batch * self.length, seed=seed, step=step)

    def read(self, task: Task, plan: StepPlan, step: int, seed: int) -> Batch:
        """The sequences of step `step`."""
        chosen = (task, *(mixed.task for mixed in self.mixture))[plan.task]
        return loaded(chosen, plan.load).train_batch(step, plan.rows, plan.length, seed)

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        if self.schedule == "wsd":
            decay_steps = round(self.decay * self.steps)
            return self.learning_rate * min(1.0, (self.steps - step) / max(1, decay_steps))
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _refuse_load(task: Task, load: int | None, *, alone: bool) -> None:
    """Raise `ValueError` for a load of a task that has none. alone: further tasks of a mixture may have none."""
    if load is not None and task.load is None and alone:
        raise ValueError(f"the task {task!r} has no load, got load {load}; leave it out")
