"""One plain training loop, the same for every mixer; the order of the data is a function of the seed alone."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...mixers import NotFiniteInputError
from ...mixers.stored import CorruptFileError, read_json
from ...models import LanguageModel, ModelConfig, compile_totals, compiled, compiled_since
from ...models.checksums import SUMS_FILE, check_sums, read_sums, write_sums
from ...models.language_model import CONFIG_FILE, WEIGHTS_FILE
from ..doing import Doing, Progress
from ..errors import NotFiniteError
from ..precision import autocast
from ..tasks import IGNORE, Batch, Task
from ..tasks.base import Split
from .attempts import Attempts, Pace
from .checkpoints import ResumePoint, Standing, set_aside
from .curriculum import StepPlan
from .distributed import Ranks, last_part, whole, wrap
from .evaluation import Reader, accuracy
from .finite import first_not_finite
from .loggers import Log
from .optimizers import make_optimizers, set_rate
from .settings import Bar, TrainingSettings

CURVE_POINTS = 100
RECORD_FILE = "training.json"


def train(
    model: LanguageModel,
    task: Task,
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = lambda fraction, text: None,
    resume: ResumePoint | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train `model`, which is on `device`, in place; returns the record of the training, fit for JSON.

    It holds `steps` and `tokens` read, `seconds`, `learning_rate`, `curve` (about 100 points `[step, loss]`, the loss
    in nats being the mean since the point before), `evaluations` (`[step, tokens, accuracy]` on validation data),
    `tokens_to_solve` (read until an evaluation first reached the bar, or None) and `bar`: None, or `accuracy`, `length`
    and `load` of the bar, `reached` (accuracy at the end on held-out data) and `passed`; `data`, the fields of
    `DataHash`: of the batches that were trained on, in their order; `resumed_at`, after how many steps each start but
    the first began, and `warnings`, such as of a resume point that could not be used. `seconds` are those of all starts
    together, with what was done twice. A compiled training also says `compile_seconds`, those in which it compiled
    since it was last started, and `graph_breaks`.

    resume: saved to on schedule and resumed from; the result is that of a training that was never interrupted. A model
    that keeps a memory between calls is not saved: its memory is no part of its parameters. log: told how it goes.
    With `settings.parallel` all ranks call it alike, and all get the trained model and the record.
    Raises `ValueError` for settings that do not suit the task or the model, `NotFiniteError` at the first step whose
    loss or gradient is NaN or infinite.
    """
    return _Training(model, task, settings, seed, device, progress, resume, log).run()


def train_or_load(
    config: ModelConfig,
    task: Task,
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> tuple[LanguageModel, dict[str, Any]]:
    """A trained model in evaluation mode, and what `train` returned when it was trained.

    `seed` decides both the initial parameters and the data. The model is kept in `folder`; one that is there already,
    trained in the same way, is loaded instead of being trained again if it is finished, and trained on if not. One that
    is damaged is set aside and trained anew, and the record warns of it.
    """
    config = dataclasses.replace(config, seed=seed)
    settings = settings.on(device.type)
    recipe = _recipe(config, task, settings, seed)
    ranks = Ranks.current(settings.parallel)
    resume, log = ResumePoint(folder, recipe), Log(folder, settings.log_to, recipe)
    warning = None
    try:
        record = _finished(folder, recipe)
        if record is not None:
            model = LanguageModel.load(folder, device).eval()
            progress(1.0, "trained already")
            return model, record
    except (ValueError, OSError) as error:
        warning = f"the trained model was damaged, and is trained anew: {error}"
        ranks.wait()  # until all have looked
        if ranks.rank == 0:
            set_aside(path for name in (*_FILES, SUMS_FILE) if (path := folder / name).exists())
    model = LanguageModel(config).to(device)
    training = _Training(model, task, settings, seed, device, progress, resume, log).run(warning)
    if ranks.rank == 0:
        _keep(model, {"recipe": recipe, "training": training}, folder)
        resume.remove()
        Attempts(folder).remove()
    ranks.wait()
    return model, training


_FILES = (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE)


def _finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the finished training of `recipe` in `folder`, if there is one.

    Raises `ValueError` or `OSError` for one that is damaged.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    sums = read_sums(folder)
    if sums is not None and RECORD_FILE not in sums:  # killed in its last moment
        return None
    kept = read_json(path)
    if not isinstance(kept, dict) or not isinstance(kept.get("training"), dict):
        raise CorruptFileError(path, "it is not the record of a training")
    if kept.get("recipe") != recipe:
        return None
    check_sums(folder, [RECORD_FILE])
    return kept["training"]


def _keep(model: LanguageModel, content: dict[str, Any], folder: Path) -> None:
    """Save a trained model and its record; it is finished once the sums of both are written, which come last."""
    model.save(folder)
    partial = folder / f"{RECORD_FILE}.tmp"
    partial.write_text(json.dumps(content))
    os.replace(partial, folder / RECORD_FILE)
    write_sums(folder, _FILES)


class _Training:
    """A training under way: what it trains, with what, and where it stands."""

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        settings: TrainingSettings,
        seed: int,
        device: torch.device,
        progress: Progress,
        resume: ResumePoint | None,
        log: Log | None,
    ) -> None:
        settings.check(task)
        self.ranks = Ranks.current(settings.parallel)
        _check_model(model, task, settings, self.ranks)
        self.keeps_memory = any(mixer.keeps_memory for mixer in model.mixers())
        self.task, self.settings, self.seed, self.device = task, settings, seed, device
        self.progress, self.resume = progress, None if self.keeps_memory else resume
        first = resume is not None and self.ranks.rank == 0
        self.attempts = Attempts(resume.folder, resume.recipe) if first and resume is not None else Attempts(None)
        self.pace, self.save_is_due = Pace(), False
        self.log = log if self.ranks.rank == 0 else None
        # nothing puts shards together again in place
        self.given, self.model = model, copy.deepcopy(model) if settings.parallel == "fsdp" else model
        features = compiled(self.model.features, settings.compile, device) if settings.compile else None
        reader = Reader(self.model, features)
        self.reader = wrap(reader, settings.parallel, device)
        self.optimizers = make_optimizers(self.model, settings.optimizer, settings.learning_rate, settings.weight_decay)
        self.standing = Standing()
        self.ahead: tuple[StepPlan, Batch] | None = None  # of the next step
        self.gradient_norm = 0.0
        self.marked = (0, 0.0)  # tokens and seconds at the last point of the curve

    def run(self, warning: str | None = None) -> dict[str, Any]:
        """Train to the end; returns the record. warning: for a reader of it."""
        if self.resume is not None:
            self.standing, unusable = self.resume.restore(self.model, self.optimizers, self.ranks)
            self.ranks.check_equal(self.standing.step)
            warning = warning or unusable
        self.attempts.begin(self.standing.step, self.standing.seconds, warning)
        self.standing.seconds = self.attempts.seconds
        compiled_before = compile_totals() if self.settings.compile else {}
        self.marked = self.standing.tokens, self.standing.seconds
        self.model.train()
        with _activations(self.model, checkpoint=self.settings.checkpoint_activations), self._logging():
            while self.standing.step < self.settings.steps and not self._stopped():
                self._advance()
                self.progress(self.standing.step / self.settings.steps, self._doing())
                self._save_if_due()
            if self.standing.losses:
                self._mark_curve()
        reached = self._bar_reached()
        if self.given is not self.model:
            self.given.load_state_dict(whole(self.model.state_dict()))
        self.given.eval()
        record = self._record(reached)
        return record | compiled_since(compiled_before) if self.settings.compile else record

    def _advance(self) -> None:
        """One step, and what is due after it."""
        standing, settings = self.standing, self.settings
        plan, batch = self.ahead or self._draw(standing.step)
        set_rate(self.optimizers, settings.rate_at(standing.step))
        with _window(self.model, settings.dropout_window if plan.windowed else None):
            loss = self._step(batch)
        standing.step += 1
        standing.tokens += plan.tokens
        standing.losses.append(loss)
        standing.seconds = self.attempts.seconds
        last = standing.step == settings.steps
        if last or standing.step % max(1, settings.steps // CURVE_POINTS) == 0:
            self._mark_curve()
        if settings.bar is not None and (last or standing.step % settings.evaluate_every == 0):
            self._evaluate(settings.bar)
            standing.seconds = self.attempts.seconds
        self.attempts.beat()

    def _draw(self, step: int) -> tuple[StepPlan, Batch]:
        plan = self.settings.plan(step, self.seed)
        return plan, self.settings.read(self.task, plan, step, self.seed)

    def _step(self, batch: Batch) -> float:
        """Move the parameters by the gradient over `batch`; returns the loss before."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        try:
            loss = self._backward(batch)
        except NotFiniteInputError as error:  # some mixers look at what they are given
            if self.ranks.size > 1:  # the others know nothing of it, and will not read the batch again
                raise NotFiniteError(f"at training step {self.standing.step + 1}: {error}") from None
            self._complain(batch, math.nan, math.nan)
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip))
        # drawn, and noted, while the device is still at work
        self.ahead = self._draw(self.standing.step + 1) if self.standing.step + 1 < self.settings.steps else None
        self.standing.data.add(batch)
        # looked at before the step: afterwards every parameter is spoilt and none can be named
        found, due, norm_found = torch.stack([*loss, norm.to(loss.dtype)]).tolist()
        self.save_is_due = due > 0
        if not (math.isfinite(found) and math.isfinite(norm_found)):
            self._complain(batch, found, norm_found)
        for optimizer in self.optimizers:
            optimizer.step()
        self.gradient_norm = norm_found
        return found

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradient of the mean loss over the scored positions of `batch`; returns that mean, and after it
        whether the first rank finds that it is time to save: all must save at the same step."""
        count = int((batch.targets != IGNORE).sum())
        total = torch.zeros((), device=self.device)
        parts = self._parts(batch)
        for part in range(parts):
            with last_part(self.reader, part == parts - 1):
                loss = self._loss(batch, part) / count
                (loss * self.ranks.size).backward()  # the ranks' gradients are averaged
            total += loss.detach()
        due = self.ranks.rank == 0 and self.pace.due
        return self.ranks.sum(torch.stack([total, torch.full_like(total, float(due))]))

    def _parts(self, batch: Batch) -> int:
        """In how many parts each rank reads its rows of `batch`; as many on all ranks, and none is empty."""
        return min(self.settings.accumulate, len(batch.tokens) // self.ranks.size)

    def _loss(self, batch: Batch, part: int) -> Tensor:
        """Summed cross-entropy of one of the parts in which this rank reads its rows of `batch`."""
        parts = self._parts(batch)
        own = batch.map(lambda tensor: self.ranks.rows(tensor).tensor_split(parts)[part])
        scored = own.targets != IGNORE
        with autocast(self.device, self.settings.precision):
            logits = self.reader(own.tokens.to(self.device), scored.to(self.device), own.edges)
            return F.cross_entropy(logits, own.targets[scored].to(self.device), reduction="sum")

    def _complain(self, batch: Batch, loss: float, norm: float) -> NoReturn:
        """Raise `NotFiniteError` that says where in the model it began."""
        if self.settings.parallel != "fsdp":
            self.reader = Reader(self.model)  # what is compiled does not show its parts
        blamed = first_not_finite(self.model, lambda: [self._loss(batch, i) for i in range(self._parts(batch))])
        numbers = f"the loss is {loss}, the gradient norm {norm}"
        raise NotFiniteError(f"at training step {self.standing.step + 1} {numbers}; it began in {blamed}")

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        if self.log is not None:
            self.log.open(self.standing.step)
        try:
            yield
        finally:
            if self.log is not None:
                self.log.close()

    def _mark_curve(self) -> None:
        standing, losses = self.standing, self.standing.losses
        standing.curve.append([standing.step, math.fsum(losses) / len(losses)])
        losses.clear()
        (tokens, seconds), self.marked = self.marked, (standing.tokens, standing.seconds)
        if self.log is not None:
            self.log.write(
                standing.step,
                loss=standing.curve[-1][1],
                learning_rate=self.settings.rate_at(standing.step - 1),
                gradient_norm=self.gradient_norm,
                tokens=standing.tokens,
                tokens_per_second=(standing.tokens - tokens) / (standing.seconds - seconds),
            )

    def _evaluate(self, bar: Bar) -> None:
        """Record the accuracy on validation data."""
        standing, found = self.standing, self._accuracy(bar, "validation")
        standing.evaluations.append([standing.step, standing.tokens, found])
        if standing.tokens_to_solve is None and found >= bar.accuracy:
            standing.tokens_to_solve = standing.tokens
        if self.log is not None:
            self.log.write(standing.step, tokens=standing.tokens, accuracy=found)

    def _accuracy(self, bar: Bar, split: Split) -> float:
        length, load = self.settings.bar_at(self.task)
        # reading changes a memory that is kept between calls, and evaluation must not
        model = copy.deepcopy(self.model) if self.keeps_memory else self.model
        model.eval()
        found = accuracy(
            # shards are put together by the wrapper only
            self.reader if self.settings.parallel == "fsdp" else Reader(model),
            self.task if load is None else self.task.with_load(load),
            length=length,
            examples=bar.examples,
            seed=self.seed,
            split=split,
            rows=max(1, self.settings.batch * self.settings.length // length // self.settings.accumulate),
            device=self.device,
            precision=self.settings.precision,
        )
        self.model.train()
        return found

    def _bar_reached(self) -> dict[str, Any] | None:
        """What the bar asked for and, on held-out data, whether it was reached; None without a bar."""
        bar = self.settings.bar
        if bar is None:
            return None
        length, load = self.settings.bar_at(self.task)
        reached = self._accuracy(bar, "eval")
        passed = reached >= bar.accuracy
        return {"accuracy": bar.accuracy, "length": length, "load": load, "reached": reached, "passed": passed}

    def _stopped(self) -> bool:
        """Whether the bar has ended the training."""
        bar, evaluations = self.settings.bar, self.standing.evaluations
        if bar is None or not bar.stop or not evaluations:
            return False
        return evaluations[-1][2] >= bar.accuracy + bar.margin

    def _save_if_due(self) -> None:
        standing, every = self.standing, self.settings.save_every
        over = standing.step == self.settings.steps or self._stopped()
        due = self.save_is_due if every is None else standing.step % every == 0
        if self.resume is not None and not over and due:
            began = time.perf_counter()
            failure = self.resume.save(self.model, self.optimizers, standing, self.ranks)
            self.pace.saved(began)
            self.attempts.beat(failure)

    def _doing(self) -> Doing:
        standing = self.standing
        values = {"loss": standing.curve[-1][1]} if standing.curve else {}
        if standing.evaluations:
            values["accuracy"] = standing.evaluations[-1][2]
        return Doing(f"training: step {standing.step}/{self.settings.steps}", values)

    def _record(self, bar: dict[str, Any] | None) -> dict[str, Any]:
        standing = self.standing
        return {
            "steps": standing.step,
            "tokens": standing.tokens,
            "seconds": self.attempts.seconds,
            "learning_rate": self.settings.learning_rate,
            "curve": standing.curve,
            "evaluations": standing.evaluations,
            "tokens_to_solve": standing.tokens_to_solve,
            "bar": bar,
            "data": dataclasses.asdict(standing.data),
            "resumed_at": self.attempts.resumed_at,
            "warnings": self.attempts.warnings,
        }


def _recipe(config: ModelConfig, task: Task, settings: TrainingSettings, seed: int) -> dict[str, Any]:
    """All that decides a training, as JSON has it; how many processes it has changes the rounding only."""
    chosen = settings.model_dump(exclude={"parallel", "processes", "save_every", "log_to"})
    recipe = {"model": config.to_dict(), "task": task.model_dump(), "settings": chosen, "seed": seed}
    return json.loads(json.dumps(recipe))


def _check_model(model: LanguageModel, task: Task, settings: TrainingSettings, ranks: Ranks) -> None:
    """Raise `ValueError` if the model cannot be trained in this way."""
    needed = max(each.vocab_size for each in (task, *(mixed.task for mixed in settings.mixture)))
    if needed > model.config.vocab_size:
        raise ValueError(f"the tasks use {needed} token ids, the model has vocab_size {model.config.vocab_size}")
    shared = [mixer.place for mixer in model.mixers() if not mixer.rows_are_independent]
    if shared and (settings.accumulate > 1 or ranks.size > 1):
        raise ValueError(
            f"accumulate: {settings.accumulate} and {ranks.size} processes would change what {', '.join(shared)} "
            "learns, whose memory the sequences of a step share; take accumulate: 1 and parallel: none"
        )
    keeping = [mixer.place for mixer in model.mixers() if mixer.keeps_memory]
    if settings.compile and keeping:
        raise ValueError(f"compile: {settings.compile} is not for {', '.join(keeping)}, which a call changes; take off")
    longest = max(draw.length for draw in settings.draws)
    rows = max(1, settings.batch * settings.length // longest)
    if rows < ranks.size:
        raise ValueError(
            f"{ranks.size} processes cannot share a step of {rows} sequences of {longest} tokens; raise batch"
        )


@contextlib.contextmanager
def _window(model: LanguageModel, window: int | None) -> Iterator[None]:
    """Let softmax layers, those that can be told so, see only the last `window` tokens; None: all they ever see."""
    mixers: list[Any] = [m for m in model.mixers() if window is not None and hasattr(m, "train_window")]
    for mixer in mixers:
        mixer.train_window = window
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.train_window = None


@contextlib.contextmanager
def _activations(model: Any, *, checkpoint: bool) -> Iterator[None]:
    """Have the model compute its activations again in the backward pass if `checkpoint`."""
    if not checkpoint:
        yield
        return
    model.checkpoint_activations = True
    try:
        yield
    finally:
        model.checkpoint_activations = False
