"""Taught, then asked: measures of trained models, and the two kinds of cases that come before their own.

`tuning` tries options in short trainings, `training` trains with those that were chosen; what asks a trained model
comes last, in cases that load it, and only if it was taught.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from torch.nn import functional as F
from typing_extensions import Self

from ...mixers import check_option, mixer_options
from ...mixers.limits import Amount, Count, Real, Seed, shown
from ...mixers.stored import file_in
from ...models import LanguageModel, ModelConfig, count_flops, count_parameters, resolve_d_ff
from ...models.checksums import check_sums
from ...models.language_model import CONFIG_FILE, WEIGHTS_FILE
from ..doing import Doing, Progress
from ..runs import ResultLine
from ..tasks import IGNORE, AnyTask, NeedleTask, Task, TextTask
from ..training import TrainingSettings, autocast, scored_logits, train_or_load
from .base import CallSeconds, Measure, check_vocabulary, part_of
from .entry import Entry

CHECKPOINT = "checkpoint"

Choice = dict[str, Any]  # swept option -> value


class Sweep(BaseModel):
    """Options to choose for each layout by successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943).

    Further keys are the options, each with its values: a setting of the training (`learning_rate: [1e-3, 3e-3]`), or
    an option of a mixer (`fwpkm.top_k: [4, 8]`), which counts for the layouts that hold the mixer. Every combination
    is trained for the first of `rungs` (shares of the steps); of those, the share `keep` with the least validation
    loss goes on to the next, from new models. seeds: of these trainings alone. examples: validation sequences for each
    length and load.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    seeds: tuple[Seed, ...] = Field(default=(1000,), min_length=1)
    rungs: tuple[Real, ...] = Field(default=(0.2,), min_length=1)
    keep: Real = Field(default=0.5, gt=0, lt=1)
    examples: Count = 16

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.options:
            raise ValueError("a sweep needs options, such as learning_rate: [1e-3, 3e-3]")
        for name, values in self.options.items():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{name} must be a list of values to try, got {values!r}")
            mixer, _, option = name.rpartition(".")
            known = mixer_options(mixer) if mixer else TrainingSettings.model_fields
            if option not in known:
                raise ValueError(f"{mixer or 'training'} has no setting {option!r} to sweep; it has {', '.join(known)}")
            for value in values if mixer else ():
                check_option(mixer, option, value)
        if list(self.rungs) != sorted(set(self.rungs)) or not 0 < self.rungs[0] <= self.rungs[-1] <= 1:
            raise ValueError(f"rungs must be rising shares of the steps in 0..1, got {list(self.rungs)}")
        return self

    @property
    def options(self) -> dict[str, list[Any]]:
        return dict(self.model_extra or {})

    def choices(self, mixers: set[str]) -> list[Choice]:
        """Every combination of the options that a layout with these mixers has."""
        own = {name: values for name, values in self.options.items() if _mixer(name) in (None, *mixers)}
        return [dict(zip(own, values)) for values in itertools.product(*own.values())]

    def survivors(self, scores: dict[int, float]) -> list[int]:
        """Which choices, by number, go on from a rung with these scores, least first; ties go to the earlier one."""
        finite = sorted((score, number) for number, score in scores.items() if math.isfinite(score))
        return [number for _, number in finite[: max(1, math.ceil(self.keep * len(scores)))]]


def _mixer(option: str) -> str | None:
    return option.rpartition(".")[0] or None


def apply_choice(choice: Choice, model: dict[str, Any], training: TrainingSettings) -> tuple[dict, TrainingSettings]:
    """The model's configuration (as a dict) and the settings of its training with the options of `choice`."""
    defaults = {name: dict(options) for name, options in model["mixer_defaults"].items()}
    settings = training.model_dump()
    for name, value in choice.items():
        mixer, _, option = name.rpartition(".")
        (defaults.setdefault(mixer, {}) if mixer else settings)[option] = value
    return {**model, "mixer_defaults": defaults}, TrainingSettings.model_validate(settings)


class Trained(Measure):
    """A measure of trained models. task, training, sweep: what to train on and how. Subclasses write `ask`.

    trained: the case whose model is asked; a suite leaves it out.
    """

    reusable: ClassVar[bool] = True
    task: AnyTask
    training: TrainingSettings = TrainingSettings()
    sweep: Sweep | None = None
    trained: str | None = None

    @field_validator("sweep")
    @classmethod
    def _check_sweep(cls, sweep: Sweep | None, known: ValidationInfo) -> Sweep | None:
        """Refuse values that the training cannot have; here, so that the message points at the sweep."""
        training = known.data.get("training")
        if sweep is None or training is None:
            return sweep
        for name, values in sweep.options.items():
            for value in values if _mixer(name) is None else ():
                try:
                    TrainingSettings.model_validate({**training.model_dump(), name: value})
                except ValidationError as error:
                    why = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"{name} cannot be {shown(value)}: {why}") from None
        return sweep

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        self.training.check(self.task)
        return self

    def training_case(self, choice: Choice, training: TrainingSettings) -> Training:
        return Training(task=self.task, training=training, chosen=choice)

    def asking_cases(self, training: TrainingSettings, trained: str) -> list[Self]:
        """The cases that ask the model that the case `trained` trained with these settings."""
        update = {"training": training, "trained": trained, "sweep": None}
        return [case.model_copy(update=update) for case in self.cases()]

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`. folder: of the training case. Raises `ValueError` if it holds no model that is whole."""
        check_vocabulary(config, self.task)
        try:
            model = LanguageModel.load(folder / CHECKPOINT, device).eval()
        except (ValueError, OSError) as error:
            run = folder.parents[1]
            command = shlex.join(["mixerzoo", "run", str(run / "suite.yaml"), "--out", str(run), "--retry-failed"])
            raise ValueError(
                f"the model that the case {self.trained} trained cannot be loaded: {error}; `{command}` trains it again"
            ) from None
        return self.ask(model, seed=seed, device=device, progress=progress)

    def ask(self, model: LanguageModel, *, seed: int, device: torch.device, progress: Progress) -> dict[str, Any]:
        """Measure a trained model; returns metrics, fit for JSON."""
        raise NotImplementedError


def is_whole(folder: Path) -> bool:
    """Whether the folder of a training case holds a model as it was saved, as far as its checksums tell."""
    try:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            file_in(folder / CHECKPOINT, name)
        check_sums(folder / CHECKPOINT, (CONFIG_FILE, WEIGHTS_FILE))
    except (ValueError, OSError):
        return False
    return True


class _Trains(Measure):
    """A case that trains one model and keeps it in its folder."""

    reusable: ClassVar[bool] = True
    task: AnyTask = NeedleTask()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        self.training.check(self.task)
        return self

    @property
    def processes(self) -> int:
        return self.training.processes

    def train(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> tuple[LanguageModel, dict[str, Any]]:
        """The trained model and its record, see `train_or_load`; records of before have no `data`."""
        check_vocabulary(config, self.task)
        where: dict[str, Any] = {"seed": seed, "device": device, "folder": folder / CHECKPOINT}
        return train_or_load(config, self.task, self.training, **where, progress=progress)

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: the steps, and the evaluations where there is a bar."""
        settings, logits = self.training, logits_share(self.task)
        total, tokens = 0.0, settings.batch * settings.length
        for share, mix in [(phase.share, phase.mix) for phase in settings.curriculum] or [(1.0, settings.draws)]:
            weights = sum(draw.weight for draw in mix)
            for draw in mix:
                rows = max(1, tokens // draw.length) / settings.accumulate
                step = settings.accumulate * call("train", rows, draw.length, logits=logits)
                total += settings.steps * share * draw.weight / weights * step
        if settings.bar is not None:
            length, _ = settings.bar_at(self.task)
            rows = max(1, tokens // length)
            calls = (settings.steps // settings.evaluate_every + 1) * math.ceil(settings.bar.examples / rows)
            total += calls * call("forward", min(rows, settings.bar.examples), length, logits=logits)
        return total


def logits_share(task: Task) -> float:
    """The share of positions that a task scores, roughly: all of a text, few of what is asked for in one."""
    return 1.0 if isinstance(task, TextTask) else 0.0


class Training(_Trains):
    """Train one model until it passes the bar of its task, or the budget ends. chosen: what a sweep chose."""

    measure: Literal["training"] = "training"
    chosen: Choice = Field(default_factory=dict)

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `training` (see `train`), the `data` of it, `chosen`, `parameters`, `d_ff`,
        `flops_per_token` (of a forward call at the training length) and `text` (the corpus)."""
        _, record = self.train(config, seed=seed, device=device, folder=folder, progress=progress)
        # counting runs a model of its own on the CPU; in an empty context, its backends are not recorded as ours
        flops = contextvars.Context().run(count_flops, config, self.training.length)
        data = record.pop("data", None)
        return {
            "training": record,
            "data": data,
            "chosen": self.chosen,
            "parameters": count_parameters(config)["total"],
            "d_ff": resolve_d_ff(config),
            "flops_per_token": round(flops / self.training.length),
            "text": self.task.describe_text(),
        }

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        record = (result.metrics or {})["training"]
        if (bar := record.get("bar")) is not None:
            title = f"training: seeds that reached {bar['accuracy']:.0%} at {bar['length']} tokens, load {bar['load']}"
            solved = record["tokens_to_solve"] if bar["passed"] else None
            yield Entry(title, "taught (median tokens to solve)", math.inf if solved is None else solved, _taught)


def _taught(tokens_to_solve: list[float]) -> str:
    solved = [tokens for tokens in tokens_to_solve if math.isfinite(tokens)]
    count = f"{len(solved)} of {len(tokens_to_solve)}"
    return f"{count} ({median(solved) / 1e6:.2f} M)" if solved else count


class Tuning(_Trains):
    """One short training of a sweep, see `Sweep`. choice: the options tried; rung: from 0. training: as shortened."""

    measure: Literal["tuning"] = "tuning"
    choice: Choice = Field(default_factory=dict)
    rung: Amount = 0
    examples: Count = 16

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `choice`, `rung`, `tokens`, `score` (validation loss in nats, the mean over
        the lengths and loads that the training ends with), `accuracy` (theirs), `training` (see `train`) and the
        `data` of it."""
        part = part_of(progress, 0.0, 0.9)
        work = f"tuning rung {self.rung}"
        model, record = self.train(
            config,
            seed=seed,
            device=device,
            folder=folder,
            progress=lambda fraction, doing: part(fraction, Doing.of(doing).within(work)),
        )
        progress(0.9, Doing("validation").within(work))
        points = self.training.last_points(self.task)
        readings = [
            (weight, *validate(model, task, length, self.examples, seed, device, self.training))
            for task, length, weight in points
        ]
        total = sum(weight for weight, _, _ in readings)
        data = record.pop("data", None)
        return {
            "choice": self.choice,
            "rung": self.rung,
            "tokens": record["tokens"],
            "score": sum(weight * nats for weight, nats, _ in readings) / total,
            "accuracy": sum(weight * accuracy for weight, _, accuracy in readings) / total,
            "training": record,
            "data": data,
        }

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: the training, and validation at its end."""
        tokens = self.training.batch * self.training.length
        validation = 0.0
        for _, length, _ in self.training.last_points(self.task):
            rows = min(self.examples, max(1, tokens // length))
            reading = call("forward", rows, length, logits=logits_share(self.task))
            validation += math.ceil(self.examples / rows) * reading
        return super().seconds(call) + validation

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        metrics = result.metrics or {}
        choice = ", ".join(f"{name} {value}" for name, value in metrics["choice"].items())
        yield Entry(f"tuning, rung {metrics['rung'] + 1}: validation loss in nats", choice, metrics["score"])


@torch.no_grad()
def validate(
    model: LanguageModel,
    task: Task,
    length: int,
    examples: int,
    seed: int,
    device: torch.device,
    settings: TrainingSettings,
) -> tuple[float, float]:
    """Mean loss in nats and accuracy over the scored positions of `examples` sequences of the validation stream."""
    nats, right, count = 0.0, 0, 0
    batch = max(1, settings.batch * settings.length // length)
    for sequences in task.eval_batches(length, examples, seed, batch, "validation"):
        scored = sequences.targets != IGNORE
        targets = sequences.targets[scored].to(device)
        with autocast(device, settings.precision):
            logits = scored_logits(model, sequences.tokens.to(device), scored.to(device), sequences.edges)
        nats += F.cross_entropy(logits, targets, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    return nats / count, right / count
