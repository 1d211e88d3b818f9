"""One plain training loop, the same for every mixer; the order of the data is a function of the seed alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..mixers import Mixer
from ..models import LanguageModel, ModelConfig, ModelState
from .errors import NotFiniteError
from .tasks import IGNORE, Batch, Task

Progress = Callable[[float, str], None]  # share of the work done, 0..1, and one line for people
Precision = Literal["float32", "bfloat16"]

CURVE_POINTS = 100
RECORD_FILE = "training.json"


class TrainingSettings(BaseModel):
    """How a model is trained: AdamW, linear warm-up, cosine decay to zero, clipped gradients.

    steps; batch: sequences a step; length: tokens of each. learning_rate: at its peak. warmup: share of the steps.
    weight_decay: on matrices only (parameters of two dimensions or more). clip: largest 2-norm of the gradient.
    precision: `bfloat16` trains and evaluates under autocast, parameters stay float32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    length: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Precision = "float32"

    @property
    def tokens(self) -> int:
        """Tokens read in the whole training."""
        return self.steps * self.batch * self.length

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95, and weight decay on parameters of two dimensions or more.

    Mixers may ask for groups of their own, see `Mixer.parameter_groups`. The learning rate of a group
    is `learning_rate` times its `learning_rate_scale`; whoever changes it later keeps to that.
    Raises `ValueError` for a mixer whose gradients are sparse: AdamW takes none.
    """
    apart = [g for m in model.modules() if isinstance(m, Mixer) for g in m.parameter_groups()]
    if any(group.get("sparse_gradient") for group in apart):
        raise ValueError(
            "AdamW takes no sparse gradients: build the mixers with sparse_gradient=False to train them here"
        )
    theirs = {id(p) for group in apart for p in group["params"]}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in theirs]
    rest = {"learning_rate_scale": 1.0, "weight_decay": weight_decay}
    groups = [
        {**rest, "params": [p for p in parameters if p.ndim >= 2]},
        {**rest, "params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        *({**rest, **group} for group in apart),
    ]
    for group in groups:
        group["lr"] = learning_rate * group["learning_rate_scale"]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model computes in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def scored_logits(model: LanguageModel, tokens: Tensor, scored: Tensor, state: ModelState | None = None) -> Tensor:
    """float32 logits `[n, vocab_size]` after the positions of `tokens` that the mask `scored [batch, time]` picks.

    The output layer runs at those positions only. state: what the model read before; None starts fresh.
    """
    features, _ = model.features(tokens, state)
    return model.head(features[scored]).float()


def batch_loss(model: LanguageModel, batch: Batch, device: torch.device) -> Tensor:
    """Mean cross-entropy in nats over the positions of `batch` that are scored."""
    scored = batch.targets != IGNORE
    logits = scored_logits(model, batch.tokens.to(device), scored.to(device))
    return F.cross_entropy(logits, batch.targets[scored].to(device))


def train(
    model: LanguageModel,
    task: Task,
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = lambda fraction, text: None,
) -> dict[str, Any]:
    """Train `model`, which is on `device`, in place; returns `steps`, `tokens`, `seconds` and `curve`.

    The curve has about 100 points `[step, loss]`, the loss being the mean since the point before.
    Raises `NotFiniteError` soon after a loss or a gradient is NaN or infinite.
    """
    optimizer = make_optimizer(model, settings.learning_rate, settings.weight_decay)
    every = max(1, settings.steps // CURVE_POINTS)
    curve: list[list[float]] = []
    total, summed = torch.zeros((), device=device), 0
    start = time.perf_counter()
    model.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step) * group["learning_rate_scale"]
        batch = task.train_batch(step, settings.batch, settings.length, seed)
        with autocast(device, settings.precision):
            loss = batch_loss(model, batch, device)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total, summed = total + loss.detach(), summed + 1
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            # a loss that was not finite stays visible in the sum, a gradient that was not in the parameters
            if not math.isfinite(mean := total.item() / summed) or not math.isfinite(norm.item()):
                raise NotFiniteError(f"by training step {step + 1} the loss is {mean}, the gradient norm {norm.item()}")
            curve.append([step + 1, mean])
            total, summed = torch.zeros((), device=device), 0
        progress((step + 1) / settings.steps, _progress_text(step + 1, settings.steps, curve))
    model.eval()
    seconds = time.perf_counter() - start
    return {"steps": settings.steps, "tokens": settings.tokens, "seconds": seconds, "curve": curve}


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
    finished and trained in the same way, is loaded instead of being trained again.
    """
    config = dataclasses.replace(config, seed=seed)
    recipe = {"model": config.to_dict(), "task": task.model_dump(), "settings": settings.model_dump(), "seed": seed}
    recipe = json.loads(json.dumps(recipe))
    record_path = folder / RECORD_FILE
    record = json.loads(record_path.read_text()) if record_path.is_file() else {}
    if record.get("recipe") == recipe:
        progress(1.0, "trained already")
        return LanguageModel.load(folder, device).eval(), record["training"]
    record_path.unlink(missing_ok=True)
    model = LanguageModel(config).to(device)
    training = train(model, task, settings, seed=seed, device=device, progress=progress)
    model.save(folder)
    # written last and whole: its presence says that the model beside it is finished
    partial = record_path.with_name(f"{RECORD_FILE}.tmp")
    partial.write_text(json.dumps({"recipe": recipe, "training": training}))
    os.replace(partial, record_path)
    return model, training


def _progress_text(step: int, steps: int, curve: list[list[float]]) -> str:
    loss = f", loss {curve[-1][1]:.3f}" if curve else ""
    return f"training: step {step}/{steps}{loss}"
