"""Copying: a random string, then the same string again."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...mixers.limits import Vocabulary
from .base import Batch, Split, Task


class CopyTask(Task):
    """Say again, in order, what was read (Graves et al. 2014, "Neural Turing machines", arXiv 1410.5401, section 4.1;
    Jelassi et al. 2024, arXiv 2402.01032, section 3.1, whose strings are over 26 letters).

    A sequence is `n_tokens` random symbols, blanks, `[copy]`, and the symbols again, all of which are scored, each
    given those before it. Ids: `n_symbols` symbols, the blank, the copy marker.

    n_tokens: length of the string; "all" takes as much as the length holds, so that there are no blanks, but for one
    if the length is even.
    """

    task: Literal["copy"] = "copy"
    n_tokens: Literal["all"] | int = "all"
    n_symbols: Vocabulary = Field(default=26, ge=2)

    @model_validator(mode="after")
    def _check(self) -> CopyTask:
        if self.n_tokens != "all" and self.n_tokens < 1:
            raise ValueError(f'n_tokens={self.n_tokens} must be "all" or at least 1')
        return self

    @property
    def blank_id(self) -> int:
        return self.n_symbols

    @property
    def copy_id(self) -> int:
        return self.n_symbols + 1

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 2

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    @property
    def min_length(self) -> int:
        return 3 if self.n_tokens == "all" else 2 * self.n_tokens + 1

    @property
    def load(self) -> int | None:
        return None if self.n_tokens == "all" else self.n_tokens

    def with_load(self, load: int) -> CopyTask:
        return CopyTask.model_validate({**self.model_dump(), "n_tokens": load})

    def context_length(self, length: int) -> int:
        return length - 1 - self._n_copied(length)

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        n, context = self._n_copied(length), self.context_length(length)
        string = rng.integers(self.n_symbols, size=(batch, n))
        tokens = np.full((batch, length), self.blank_id)
        tokens[:, :n] = tokens[:, context + 1 :] = string
        tokens[:, context] = self.copy_id
        result = Batch.of(tokens)
        found_at = np.tile(np.arange(n), (batch, 1))
        result.ask(context + found_at, string, found_at / max(1, context - 1), found_at)
        return result

    def _n_copied(self, length: int) -> int:
        return (length - 1) // 2 if self.n_tokens == "all" else self.n_tokens
