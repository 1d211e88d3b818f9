"""What a task is: an endless supply of training batches, and batches for validation and evaluation that never overlap
with them, nor with each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from typing_extensions import Self

IGNORE = -100
"""The target of a position that is not scored; what `cross_entropy` ignores by default."""

Split = Literal["train", "validation", "eval"]
"""What a batch is for; no example of one is one of another."""
_STREAMS: dict[Split, int] = {"train": 1, "eval": 2, "validation": 3}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences, what is asked of them, and where the answer was; all `[batch, time]`, on the CPU.

    tokens: int64 ids. targets: the id that should be said there, `IGNORE` where nothing is scored.
    depths: float32, where in the context the answer stood, 0 = its start, 1 = right before the questions, or right
        before this one where they stand among the context.
    distances: int64, how many tokens back from the question the answer was, the last time if there were several.
    documents: bool, True where a document starts, which no token of another one sees; the first of a row does.
    Positions that are not scored have depth nan and distance 0, and so have those that are scored but whose answer no
    single earlier place holds, as in text or state tracking.
    """

    tokens: Tensor
    targets: Tensor
    depths: Tensor
    distances: Tensor
    documents: Tensor

    @property
    def edges(self) -> list[int] | None:
        """Cumulative lengths of the documents over the rows laid end to end, as models take them; None if each row is
        one document."""
        if not self.documents[:, 1:].any():
            return None
        return [*self.documents.flatten().nonzero().squeeze(1).tolist(), self.documents.numel()]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `change(tensor)` in place of every tensor, such as a part of the rows."""
        return Batch(**{field.name: change(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @classmethod
    def of(cls, tokens: np.ndarray) -> Batch:
        """A batch of `tokens [batch, time]` that scores nothing yet."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
        return cls(
            tokens=ids,
            targets=torch.full_like(ids, IGNORE),
            depths=torch.full(ids.shape, torch.nan),
            distances=torch.zeros_like(ids),
            documents=(torch.arange(ids.shape[1]) == 0).repeat(len(ids), 1),
        )

    def ask(self, at: np.ndarray, answers: np.ndarray, depths: np.ndarray, found_at: np.ndarray) -> None:
        """Score the positions `at` (all arguments `[batch, questions]`); the answer of each stood at `found_at`."""
        places = torch.from_numpy(at)
        self.targets.scatter_(1, places, torch.from_numpy(answers))
        self.depths.scatter_(1, places, torch.from_numpy(depths.astype(np.float32)))
        self.distances.scatter_(1, places, torch.from_numpy(at - found_at))

    def ask_where(self, scored: np.ndarray, found_at: np.ndarray) -> None:
        """Score positions that stand among the context; the answer of each is the token `found_at` (`[batch, time]`).

        Depth is the place of the answer as a share of the places before the question.
        """
        time = np.arange(scored.shape[1])
        mask = torch.from_numpy(scored)
        self.targets[mask] = self.tokens.gather(1, torch.from_numpy(found_at))[mask]
        self.depths[mask] = torch.from_numpy((found_at / np.maximum(1, time - 1)).astype(np.float32))[mask]
        self.distances[mask] = torch.from_numpy(time - found_at)[mask]

    @classmethod
    def cat(cls, batches: list[Batch]) -> Batch:
        """The rows of `batches`, one after the other."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


class Task(BaseModel):
    """A task; its fields are its parameters in a suite. Subclasses add `task: Literal[name]` and write `sample`.

    Batches are functions of the arguments alone, and there is no end to them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def vocab_size(self) -> int:
        """Ids are `0..vocab_size - 1`; the model needs at least that many."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """Accuracy of a guess by somebody who knows the task but has not read the sequence."""
        raise NotImplementedError

    @property
    def min_length(self) -> int:
        """Tokens of the shortest sequence that holds the task."""
        raise NotImplementedError

    @property
    def load(self) -> int | None:
        """How many things a sequence asks a model to hold, such as needles; None if the task has no such setting."""
        return None

    @property
    def packs(self) -> bool:
        """Whether its batches have several documents in a sequence, see `Batch.documents`."""
        return False

    def with_load(self, load: int) -> Self:
        """The same task with another `load`, and the same ids.

        Raises `ValueError` for a load that the task cannot have.
        """
        raise ValueError(f"the task {self!r} has no load that could be {load}")

    def context_length(self, length: int) -> int | None:
        """How many tokens of a sequence of `length` come before all questions, and could be read by themselves.

        None if questions stand among them.
        """
        return None

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if a sequence of `length` tokens is too short for the task."""
        if length < self.min_length:
            raise ValueError(f"{self!r} needs length >= {self.min_length}, got {length}")

    def describe_text(self) -> dict[str, Any] | None:
        """Where its text comes from (JSON-able); None for a task without text."""
        return None

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        """Draw `batch` sequences of `length` tokens. Raises `ValueError` for a length that is too short."""
        raise NotImplementedError

    def train_batch(self, step: int, batch: int, length: int, seed: int) -> Batch:
        """The batch of training step `step`: `batch` sequences of `length` tokens."""
        return self.sample(self._stream("train", seed, step), "train", batch, length)

    def eval_batches(self, length: int, examples: int, seed: int, batch: int, split: Split = "eval") -> Iterator[Batch]:
        """`examples` sequences of `length` tokens, at most `batch` at a time.

        Every example has a random stream of its own, so that how they are batched does not change them. split:
        `validation` is for choices made during training and tuning, `eval` for what is reported.
        """
        for start in range(0, examples, batch):
            indices = range(start, min(start + batch, examples))
            yield Batch.cat([self.sample(self._stream(split, seed, length, i), split, 1, length) for i in indices])

    @staticmethod
    def _stream(split: Split, *key: int) -> np.random.Generator:
        return np.random.default_rng([_STREAMS[split], *key])
