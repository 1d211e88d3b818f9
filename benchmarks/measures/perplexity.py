"""Perplexity: how well a model predicts real text, by how much of the document it has read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...models import LanguageModel, ModelConfig, count_parameters
from ..errors import NotFiniteError
from ..tasks import Batch, TextTask
from ..training import Progress, TrainingSettings, autocast, train_or_load
from .base import Measure, check_vocabulary, part_of


class Perplexity(Measure):
    """Train on text at one length, then predict documents that are much longer.

    task; training: what to train on and how. length: tokens of the evaluated documents. examples: how many of them.
    eval_batch: read at once. first_bucket: tokens of the first bucket of positions; the next ends at twice as many,
    and so on, the last one at `length`.
    """

    measure: Literal["perplexity"] = "perplexity"
    task: TextTask = TextTask()
    training: TrainingSettings = TrainingSettings()
    length: int = Field(default=4096, ge=1)
    examples: int = Field(default=32, ge=1)
    eval_batch: int = Field(default=8, ge=1)
    first_bucket: int = Field(default=64, ge=1)

    @property
    def edges(self) -> list[int]:
        """Edges of the buckets, from 0 to `length`."""
        inner = [self.first_bucket]
        while inner[-1] < self.length:
            inner.append(2 * inner[-1])
        return [0, *(edge for edge in inner if edge < self.length), self.length]

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows`, `training`, `parameters` and `text` (the corpus).

        A row has `start` and `end` (positions `start <= i < end`), `tokens`, and `nats`: the mean over those tokens.
        """
        check_vocabulary(config, self.task)
        work = 3 * self.training.tokens
        share = work / (work + self.examples * self.length)
        model, training = train_or_load(
            config,
            self.task,
            self.training,
            seed=seed,
            device=device,
            folder=folder / "checkpoint",
            progress=part_of(progress, 0.0, share),
        )
        totals = self._totals(model, seed, device, part_of(progress, share, 1.0))
        buckets = list(zip(self.edges[:-1], self.edges[1:], strict=True))
        rows = [
            {
                "start": start,
                "end": end,
                "tokens": self.examples * (end - start),
                "nats": float(totals[start:end].sum()) / (self.examples * (end - start)),
            }
            for start, end in buckets
        ]
        return {
            "rows": rows,
            "training": training,
            "parameters": count_parameters(config)["total"],
            "text": self.task.describe_text(),
        }

    @torch.no_grad()
    def _totals(self, model: LanguageModel, seed: int, device: torch.device, progress: Progress) -> Tensor:
        """Nats at each position, summed over the documents, float64 `[length]`."""
        totals = torch.zeros(self.length, dtype=torch.float64)
        done = 0
        for batch in self.task.eval_batches(self.length, self.examples, seed, self.eval_batch):
            with autocast(device, self.training.precision):
                nats = position_nats(model, batch, device)
            totals += nats.double().sum(0)
            done += len(batch.tokens)
            progress(done / self.examples, f"reading documents: {done}/{self.examples}")
        if not totals.isfinite().all():
            raise NotFiniteError(f"the loss is not finite from position {int((~totals.isfinite()).nonzero()[0])} on")
        return totals


def position_nats(model: LanguageModel, batch: Batch, device: torch.device) -> Tensor:
    """Cross-entropy of every next token, in nats, float32 `[batch, time]` on the CPU."""
    logits, _ = model(batch.tokens.to(device))
    return F.cross_entropy(logits.float().transpose(1, 2), batch.targets.to(device), reduction="none").cpu()
