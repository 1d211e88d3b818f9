"""Induction: what followed the last time that this token came."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...mixers.limits import Size, Vocabulary
from . import draws
from .base import Batch, Split, Task


class InductionTask(Task):
    """Say which token followed the last occurrence of this one, as an induction head does (Olsson et al. 2022,
    "In-context learning and induction heads", arXiv 2209.11895).

    A sequence draws `n_distinct` of the `n_symbols` ids, then each of its tokens at random among them, but never the
    same twice in a row. Every position whose token came before is scored. The answer is what followed last time, not
    what follows now, so that each answer is overwritten by the next token: a memory has to hold `n_distinct`
    associations, and to replace them all the time.
    """

    task: Literal["induction"] = "induction"
    n_distinct: Size = Field(default=16, ge=3)
    n_symbols: Vocabulary = Field(default=64, ge=3)

    @model_validator(mode="after")
    def _check(self) -> InductionTask:
        if self.n_symbols < self.n_distinct:
            raise ValueError(f"n_symbols={self.n_symbols} has not n_distinct={self.n_distinct} different ids")
        return self

    @property
    def vocab_size(self) -> int:
        return self.n_symbols

    @property
    def chance(self) -> float:
        return 1 / (self.n_symbols - 1)

    @property
    def min_length(self) -> int:
        return self.n_distinct + 1  # long enough for one of them to come twice

    @property
    def load(self) -> int:
        return self.n_distinct

    def with_load(self, load: int) -> InductionTask:
        return InductionTask.model_validate({**self.model_dump(), "n_distinct": load})

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        symbols = draws.distinct(rng, batch, self.n_symbols, self.n_distinct)
        steps = rng.integers(1, self.n_distinct, size=(batch, length))  # never a whole circle
        tokens = np.take_along_axis(symbols, steps.cumsum(axis=1) % self.n_distinct, axis=1)
        found_at = draws.previous(tokens) + 1  # 0 where the token is new
        result = Batch.of(tokens)
        result.ask_where(found_at > 0, found_at)
        return result
