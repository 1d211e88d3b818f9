"""Plain text: predict every next token of a document."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator

from ...mixers.limits import Count
from .base import IGNORE, Batch, Split, Task
from .corpus import Corpus, load_corpus
from .tokenised import MAX_TOKENS, TextDataset, TokenCorpus, load_encoder, load_tokens


class TextTask(Task):
    """Next-token prediction on real text: every position is scored. Ids are the bytes, or those of a tokenizer.

    A sequence is a stretch of one document, so that a long one has a long past of its own to make use of. With
    packing "documents", documents are laid end to end in a sequence, whole ones but for the first and the last, so that
    short ones are read as well; tokens do not see those of another document, nor are predicted from them.
    text_folder: a folder of text files; without it or a dataset, the source of Python's standard library.
    tokenizer: a `tokenizer.json`, a folder that has one, or a name on the Hugging Face Hub. dataset: see
    `TextDataset`. max_tokens: how much is tokenised at most, 2**25 if not given. What is tokenised is kept, see
    `load_tokens`; it takes the packages of the extra `text`.
    """

    task: Literal["text"] = "text"
    text_folder: str | None = None
    tokenizer: str | None = None
    dataset: TextDataset | None = None
    max_tokens: Count | None = None
    packing: Literal["documents"] | None = None

    @model_validator(mode="after")
    def _check(self) -> TextTask:
        if self.dataset and self.text_folder is not None:
            raise ValueError(f"text_folder {self.text_folder!r} and dataset {self.dataset.name!r}: give one of them")
        if self.max_tokens is not None and not self._tokenised:
            raise ValueError(f"max_tokens={self.max_tokens} is for a tokenizer or a dataset, and neither is given")
        return self

    @property
    def vocab_size(self) -> int:
        return load_encoder(self.tokenizer).vocab_size

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    @property
    def min_length(self) -> int:
        return 1

    @property
    def packs(self) -> bool:
        return self.packing is not None

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        """See `Task.sample`. No question is asked of an earlier place: `depths` are nan and `distances` 0."""
        text = self._corpus.split(split)
        if not self.packs:
            return _next_tokens(text.windows(rng, batch, length + 1))
        windows, begins = text.packed(rng, batch, length + 1)
        result = _next_tokens(windows)
        result.targets[torch.from_numpy(begins[:, 1:])] = IGNORE  # the next token is of another document
        result.documents.copy_(torch.from_numpy(begins[:, :-1]))
        return result

    def describe_text(self) -> dict[str, Any]:
        """See `Task.describe_text`. bytes_per_token: of the text for evaluation, to make bits per byte of nats."""
        return {"bytes_per_token": 1.0, **self._corpus.describe()}

    @property
    def _tokenised(self) -> bool:
        return self.tokenizer is not None or self.dataset is not None

    @property
    def _corpus(self) -> Corpus | TokenCorpus:
        if not self._tokenised:
            return load_corpus(self.text_folder)
        return load_tokens(self.tokenizer, self.dataset, self.text_folder, self.max_tokens or MAX_TOKENS)


def _next_tokens(windows: np.ndarray) -> Batch:
    """Every token of `windows [batch, length + 1]` but the first is asked for after the one before it."""
    ids = windows.astype(np.int64)
    result = Batch.of(ids[:, :-1])
    result.targets.copy_(torch.from_numpy(ids[:, 1:]))
    return result
