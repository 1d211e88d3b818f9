"""What a model says at the positions that a task scores: its loss, and which answers are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models import LanguageModel, ModelState
from ..errors import NotFiniteError
from ..precision import Precision, autocast
from ..tasks import IGNORE, Batch, Task
from ..tasks.base import Split


class Features(Protocol):
    """Everything of a model but its output layer, see `Backbone.features`."""

    def __call__(
        self, tokens: Tensor, *, documents: Sequence[int] | None = None
    ) -> tuple[Tensor, ModelState | None]: ...


class Reader(nn.Module):
    """A model as training calls it: `scored_logits` as a module, for what wraps modules.

    features: the model's own, or a compiled version of them.
    """

    def __init__(self, model: LanguageModel, features: Features | None = None) -> None:
        super().__init__()
        self.model = model
        self.features: Features = features or model.features

    def forward(self, tokens: Tensor, scored: Tensor, documents: Sequence[int] | None = None) -> Tensor:
        features, _ = self.features(tokens, documents=documents)
        return self.model.head(features[scored]).float()


def scored_logits(
    model: LanguageModel, tokens: Tensor, scored: Tensor, documents: Sequence[int] | None = None
) -> Tensor:
    """float32 logits `[n, vocab_size]` after the positions of `tokens` that the mask `scored [batch, time]` picks.

    The output layer runs at those positions only. documents: see `LanguageModel.forward`.
    """
    return Reader(model)(tokens, scored, documents)


def batch_loss(model: LanguageModel, batch: Batch, device: torch.device) -> Tensor:
    """Mean cross-entropy in nats over the positions of `batch` that are scored."""
    scored = batch.targets != IGNORE
    logits = scored_logits(model, batch.tokens.to(device), scored.to(device), batch.edges)
    return F.cross_entropy(logits, batch.targets[scored].to(device))


@torch.no_grad()
def accuracy(
    read: Callable[..., Tensor],
    task: Task,
    *,
    length: int,
    examples: int,
    seed: int,
    split: Split,
    rows: int,
    device: torch.device,
    precision: Precision,
) -> float:
    """Share of the scored positions of `examples` sequences whose target is the likeliest token of the vocabulary.

    read: a `Reader` of the model. rows: sequences read at once. Raises `NotFiniteError` if a logit is NaN or infinite.
    """
    hits = []
    for batch in task.eval_batches(length, examples, seed, rows, split):
        with autocast(device, precision):
            hits.append(_right(read, batch, device))
    return torch.cat(hits).double().mean().item()


def _right(read: Callable[..., Tensor], batch: Batch, device: torch.device) -> Tensor:
    scored = batch.targets != IGNORE
    logits = read(batch.tokens.to(device), scored.to(device), batch.edges)
    if not logits.isfinite().all():
        raise NotFiniteError(f"logits are not finite after reading {batch.tokens.shape[1]} tokens")
    return logits.argmax(-1).cpu() == batch.targets[scored]
