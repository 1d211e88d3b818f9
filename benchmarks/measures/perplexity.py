"""Perplexity: how well a trained model predicts real text, by how much of the document it has read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from ...mixers.limits import Count, Size
from ...models import LanguageModel, ModelState
from ..doing import Doing, Progress
from ..errors import NotFiniteError
from ..runs import ResultLine
from ..tasks import Batch, TextTask
from ..training import autocast
from .base import CallSeconds
from .entry import Entry
from .trained import Trained


class Perplexity(Trained):
    """Train on text at one length, then predict documents that are much longer, to their end.

    task; training; sweep: what to train on and how. length: tokens of the evaluated documents. examples: how many of
    them. eval_batch: read at once. chunk_size: tokens read in one call, the state carried on. first_bucket: tokens of
    the first bucket of positions; the next ends at twice as many, and so on, the last one at `length`.
    """

    measure: Literal["perplexity"] = "perplexity"
    task: TextTask = TextTask()
    length: Size = 4096
    examples: Count = 32
    eval_batch: Size = 8
    chunk_size: Size = 2048
    first_bucket: Size = 64

    def cases(self) -> list[Self]:
        return [self]

    @property
    def edges(self) -> list[int]:
        """Edges of the buckets, from 0 to `length`."""
        inner = [self.first_bucket]
        while inner[-1] < self.length:
            inner.append(2 * inner[-1])
        return [0, *(edge for edge in inner if edge < self.length), self.length]

    def ask(self, model: LanguageModel, *, seed: int, device: torch.device, progress: Progress) -> dict[str, Any]:
        """See `Trained.ask`; metrics are `rows` and `text` (the corpus).

        A row has `start` and `end` (positions `start <= i < end`), `tokens`, and `nats`: the mean over those tokens.
        """
        totals = self._totals(model, seed, device, progress)
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
        return {"rows": rows, "text": self.task.describe_text()}

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: every document is read once."""
        rows = min(self.eval_batch, self.examples)
        return math.ceil(self.examples / rows) * call("forward", rows, self.length, logits=1.0, at_once=self.chunk_size)

    @torch.no_grad()
    def _totals(self, model: LanguageModel, seed: int, device: torch.device, progress: Progress) -> Tensor:
        """Nats at each position, summed over the documents, float64 `[length]`."""
        totals = torch.zeros(self.length, dtype=torch.float64)
        done = 0
        task = self.task.model_copy(update={"packing": None})  # documents that are read to their end stand alone
        for batch in task.eval_batches(self.length, self.examples, seed, self.eval_batch):
            with autocast(device, self.training.precision):
                nats = position_nats(model, batch, device, self.chunk_size)
            totals += nats.double().sum(0)
            done += len(batch.tokens)
            read = Doing(f"reading documents: {done}/{self.examples}", {"loss": float(totals.mean()) / done})
            progress(done / self.examples, read)
        if not totals.isfinite().all():
            raise NotFiniteError(f"the loss is not finite from position {int((~totals.isfinite()).nonzero()[0])} on")
        return totals

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        for row in (result.metrics or {})["rows"]:
            yield Entry("perplexity per token by position", (row["start"], row["end"]), row["nats"], _exponential)


def _exponential(nats: list[float]) -> str:
    return f"{math.exp(fmean(nats)):.2f}"


def position_nats(model: LanguageModel, batch: Batch, device: torch.device, chunk_size: int) -> Tensor:
    """Cross-entropy of every next token, in nats, float32 `[batch, time]` on the CPU."""
    state: ModelState | None = None
    nats = []
    for tokens, targets in zip(batch.tokens.split(chunk_size, 1), batch.targets.split(chunk_size, 1), strict=True):
        logits, state = model(tokens.to(device), state, return_state=True)
        nats.append(F.cross_entropy(logits.float().transpose(1, 2), targets.to(device), reduction="none").cpu())
    return torch.cat(nats, dim=1)
