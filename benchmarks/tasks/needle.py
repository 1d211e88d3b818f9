"""Needles in a haystack: key-value pairs hidden in real text, asked for at the end."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from .base import Batch, Split, Task
from .corpus import load_corpus

N_BYTES = 256
N_BUCKETS = 4  # depth is reported by quarters


class NeedleTask(Task):
    """Find key-value needles again that were hidden in real text (after Kamradt's needle in a haystack, 2023).

    A sequence is a stretch of text with `n_needles` needles, each two tokens `[key][value]`, put between its bytes,
    then `[ask]`, then `[key][value]` for each needle that is asked for, in random order. The value after an asked key
    is what is scored. Keys within a sequence are distinct, values are random, so that earlier answers give nothing
    away. Ids: bytes `0..255`, the ask marker, `n_keys` keys, `n_values` values.

    n_needles: needles in a sequence. asked: how many of them are asked for. text_folder: a folder of text files for
    the haystack; without it, the source of Python's standard library.
    """

    task: Literal["needle"] = "needle"
    n_needles: int = Field(default=8, ge=1)
    asked: Literal["all"] | int = "all"
    n_keys: int = Field(default=64, ge=1)
    n_values: int = Field(default=64, ge=2)
    text_folder: str | None = None

    @model_validator(mode="after")
    def _check(self) -> NeedleTask:
        if self.n_keys < self.n_needles:
            raise ValueError(f"n_keys={self.n_keys} cannot give {self.n_needles} needles distinct keys")
        if not 1 <= self.n_asked <= self.n_needles:
            raise ValueError(f'asked={self.asked} must be "all" or between 1 and n_needles={self.n_needles}')
        return self

    @property
    def n_asked(self) -> int:
        return self.n_needles if self.asked == "all" else self.asked

    @property
    def ask_id(self) -> int:
        return N_BYTES

    @property
    def first_key(self) -> int:
        return N_BYTES + 1

    @property
    def first_value(self) -> int:
        return self.first_key + self.n_keys

    @property
    def vocab_size(self) -> int:
        return self.first_value + self.n_values

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    @property
    def min_length(self) -> int:
        return 2 * self.n_needles + 2 + 2 * self.n_asked

    @property
    def load(self) -> int:
        return self.n_needles

    def with_load(self, load: int) -> NeedleTask:
        return NeedleTask.model_validate({**self.model_dump(), "n_needles": load})

    def context_length(self, length: int) -> int:
        return length - 1 - 2 * self.n_asked

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context = self.context_length(length)
        n_text = context - 2 * self.n_needles
        rows = np.arange(batch)[:, None]
        keys = self.first_key + rng.permuted(np.tile(np.arange(self.n_keys), (batch, 1)), axis=1)[:, : self.n_needles]
        values = rng.integers(self.first_value, self.vocab_size, size=(batch, self.n_needles))
        # a needle goes into one of the n_text + 1 gaps of the text, and every needle before it shifts it by two
        gaps = np.sort(np.floor(self._depths(rng, split, batch) * (n_text + 1)).astype(np.int64), axis=1)
        key_positions = gaps + 2 * np.arange(self.n_needles)

        tokens = np.empty((batch, length), dtype=np.int64)
        is_text = np.ones((batch, context), dtype=bool)
        is_text[rows, key_positions] = is_text[rows, key_positions + 1] = False
        text = load_corpus(self.text_folder).split(split).windows(rng, batch, n_text, across=True)
        tokens[:, :context][is_text] = text.reshape(-1)
        tokens[rows, key_positions] = keys
        tokens[rows, key_positions + 1] = values
        tokens[:, context] = self.ask_id

        asked = rng.permuted(np.tile(np.arange(self.n_needles), (batch, 1)), axis=1)[:, : self.n_asked]
        questions = context + 1 + 2 * np.arange(self.n_asked)
        tokens[:, questions] = keys[rows, asked]
        tokens[:, questions + 1] = values[rows, asked]

        result = Batch.of(tokens)
        found_at = key_positions[rows, asked]
        result.targets[:, questions] = torch.from_numpy(values[rows, asked])
        result.depths[:, questions] = torch.from_numpy((found_at / (context - 2)).astype(np.float32))
        result.distances[:, questions] = torch.from_numpy(questions - found_at - 1)
        return result

    def describe_text(self) -> dict[str, Any]:
        return load_corpus(self.text_folder).describe()

    def _depths(self, rng: np.random.Generator, split: Split, batch: int) -> np.ndarray:
        """Wished depths in [0, 1), `[batch, n_needles]`; for evaluation dealt evenly over the depth buckets."""
        uniform = rng.random((batch, self.n_needles))
        if split == "train":
            return uniform
        buckets = (np.arange(self.n_needles) + rng.integers(N_BUCKETS, size=(batch, 1))) % N_BUCKETS
        return (buckets + uniform) / N_BUCKETS
