"""Plain text: predict every next byte of a document."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from .base import Batch, Split, Task
from .corpus import load_corpus


class TextTask(Task):
    """Next-byte prediction on real text: every position is scored. Ids are the bytes.

    A sequence is a stretch of one document, so that a long one has a long past of its own to make use of.
    text_folder: a folder of text files; without it, the source of Python's standard library.
    """

    task: Literal["text"] = "text"
    text_folder: str | None = None

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def chance(self) -> float:
        return 1 / 256

    @property
    def min_length(self) -> int:
        return 1

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        """See `Task.sample`. No question is asked of an earlier place: `depths` are nan and `distances` 0."""
        windows = load_corpus(self.text_folder).split(split).windows(rng, batch, length + 1).astype(np.int64)
        result = Batch.of(windows[:, :-1])
        result.targets.copy_(torch.from_numpy(windows[:, 1:]))
        return result

    def describe_text(self) -> dict[str, Any]:
        return load_corpus(self.text_folder).describe()
