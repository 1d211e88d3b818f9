"""Recall: how much of what it read does a model find again, by length and depth."""

from __future__ import annotations

import contextvars
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from ...models import LanguageModel, ModelConfig, count_flops, count_parameters, resolve_d_ff
from ..tasks import IGNORE, Batch, NeedleTask, RecallTask
from ..training import Progress, TrainingSettings, answers_right, autocast, train_or_load
from .base import Measure, Size, check_vocabulary, part_of

DEPTH_EDGES = (0.0, 0.25, 0.5, 0.75)  # lower edges of the depth buckets


class Recall(Measure):
    """Train on a task at one length, then count right answers at many lengths.

    task; training: what to train on and how. lengths: tokens of the evaluated sequences. examples: sequences at each
    length. eval_batch: sequences read at once. recent: an answer fewer than this many tokens back from its question is
    counted apart, since a memory that works in chunks has not written it yet. passes: how often the context is read
    before the questions; each number of times is counted apart. Between two readings memories are kept and all else is
    dropped (`LanguageModel.restart`), so only models with such a memory gain by a second one.

    An answer is right if the likeliest token of the whole vocabulary is the one asked for.
    """

    measure: Literal["recall"] = "recall"
    task: RecallTask = NeedleTask()
    training: TrainingSettings = TrainingSettings()
    lengths: tuple[Size, ...] = Field(default=(256, 512, 1024, 2048, 4096, 8192), min_length=1)
    examples: int = Field(default=64, ge=1)
    eval_batch: int = Field(default=8, ge=1)
    recent: int = Field(default=64, ge=0)
    passes: tuple[Size, ...] = Field(default=(1,), min_length=1)

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, passes: tuple[int, ...]) -> tuple[int, ...]:
        if list(passes) != sorted(set(passes)):
            raise ValueError(f"passes must be distinct and rising, such as [1, 2, 4], got {list(passes)}")
        return passes

    @model_validator(mode="after")
    def _check_lengths(self) -> Recall:
        for length in (self.training.length, *self.lengths):
            self.task.check_length(length)
        if self.passes != (1,) and self.task.context_length(self.lengths[0]) is None:
            raise ValueError(
                f"passes must be [1] for {self.task.task}, got {list(self.passes)}: its questions stand among its "
                "context, which therefore cannot be read again without them; take the task needle"
            )
        return self

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows`, `training`, `parameters`, `flops_per_token`,
        `state_bytes` (of one sequence, by length) and `text` (the corpus).

        A row has `length`, `depth` (lower edge of its quarter), `passes`, `correct`, `total`, `chance`, `recent`.
        flops_per_token: of a forward call at the training length.
        """
        check_vocabulary(config, self.task)
        # a training step costs about three times the reading
        reading = self.examples * (len(self.passes) + self.passes[-1] - 1)
        weights = [3.0 * self.training.tokens, *(float(reading * length) for length in self.lengths)]
        ends = [sum(weights[: i + 1]) / sum(weights) for i in range(len(weights))]
        model, training = train_or_load(
            config,
            self.task,
            self.training,
            seed=seed,
            device=device,
            folder=folder / "checkpoint",
            progress=part_of(progress, 0.0, ends[0]),
        )
        rows: list[dict[str, Any]] = []
        state_bytes: dict[str, int] = {}
        for i, length in enumerate(self.lengths):
            rows += self._rows(model, length, seed, device, part_of(progress, ends[i], ends[i + 1]))
            state_bytes[str(length)] = self._state_bytes(model, length, seed, device)
        # counting runs a model of its own on the CPU; in an empty context, its backends are not recorded as ours
        flops = contextvars.Context().run(count_flops, config, self.training.length)
        return {
            "rows": rows,
            "training": training,
            "parameters": count_parameters(config)["total"],
            "d_ff": resolve_d_ff(config),
            "flops_per_token": round(flops / self.training.length),
            "state_bytes": state_bytes,
            "text": self.task.describe_text(),
        }

    @torch.no_grad()
    def _rows(
        self, model: LanguageModel, length: int, seed: int, device: torch.device, progress: Progress
    ) -> list[dict[str, Any]]:
        total: Counter[tuple[int, float, bool]] = Counter()
        correct: Counter[tuple[int, float, bool]] = Counter()
        done = 0
        for batch in self.task.eval_batches(length, self.examples, seed, self.eval_batch):
            with autocast(device, self.training.precision):
                hits = self._hits(model, batch, device)
            scored = batch.targets != IGNORE
            depths, distances = batch.depths[scored].tolist(), batch.distances[scored].tolist()
            for passes, right in hits.items():
                for depth, distance, hit in zip(depths, distances, right.tolist(), strict=True):
                    bucket = passes, max(edge for edge in DEPTH_EDGES if edge <= depth), distance < self.recent
                    total[bucket] += 1
                    correct[bucket] += hit
            done += len(batch.tokens)
            progress(done / self.examples, f"evaluating {length} tokens: {sum(correct.values())}/{sum(total.values())}")
        return [
            {
                "length": length,
                "depth": depth,
                "passes": passes,
                "correct": correct[passes, depth, recent],
                "total": total[passes, depth, recent],
                "chance": self.task.chance,
                "recent": recent,
            }
            for passes, depth, recent in sorted(total)
        ]

    def _hits(self, model: LanguageModel, batch: Batch, device: torch.device) -> dict[int, torch.Tensor]:
        """By number of passes, which answers are right; see `answers_right`."""
        context = self.task.context_length(batch.tokens.shape[1])
        state, hits = None, {}
        for reading in range(1, self.passes[-1] + 1):
            if reading in self.passes:
                hits[reading] = answers_right(model, batch, device, state)
            if reading < self.passes[-1]:
                _, read = model.features(batch.tokens[:, :context].to(device), state, return_state=True)
                assert read is not None
                state = model.restart(read)
        return hits

    @torch.no_grad()
    def _state_bytes(self, model: LanguageModel, length: int, seed: int, device: torch.device) -> int:
        example = next(self.task.eval_batches(length, 1, seed, 1))
        with autocast(device, self.training.precision):
            _, state = model.features(example.tokens.to(device), return_state=True)
        assert state is not None
        return state.nbytes
