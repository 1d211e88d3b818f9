"""Multi-query associative recall: key-value pairs, then the keys again."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from ...mixers.limits import Real, Size, Vocabulary
from . import draws
from .base import Batch, Split, Task


class MqarTask(Task):
    """Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927, section 4 and appendix D).

    A sequence starts with `n_pairs` pairs `[key][value]`. Later every key comes once more, `2 g` tokens after the last
    pair, where the slots g are drawn without replacement with probability proportional to `(g + 1) ** (alpha - 1)`;
    at those positions the key's value is to be predicted. All else is random filler. In the published generator filler
    comes from the whole vocabulary, so it can repeat a key with another "value" after it; here its ids are its own.
    Ids: `n_keys` keys, `n_values` values, `n_fillers` fillers. Keys and values are distinct within a sequence.
    """

    task: Literal["mqar"] = "mqar"
    n_pairs: Size = 8
    n_keys: Vocabulary = 192
    n_values: Vocabulary = Field(default=192, ge=2)
    n_fillers: Vocabulary = 128
    alpha: Real = Field(default=0.01, gt=0)

    @model_validator(mode="after")
    def _check(self) -> MqarTask:
        if min(self.n_keys, self.n_values) < self.n_pairs:
            raise ValueError(f"n_keys and n_values must be at least n_pairs={self.n_pairs}, all of them being distinct")
        return self

    @property
    def first_value(self) -> int:
        return self.n_keys

    @property
    def first_filler(self) -> int:
        return self.n_keys + self.n_values

    @property
    def vocab_size(self) -> int:
        return self.first_filler + self.n_fillers

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    @property
    def min_length(self) -> int:
        return 4 * self.n_pairs

    @property
    def load(self) -> int:
        return self.n_pairs

    def with_load(self, load: int) -> MqarTask:
        return MqarTask.model_validate({**self.model_dump(), "n_pairs": load})

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context = 2 * self.n_pairs
        keys = _draw_distinct(rng, batch, self.n_keys, self.n_pairs)
        values = self.first_value + _draw_distinct(rng, batch, self.n_values, self.n_pairs)
        queries = context + 2 * _draw_slots(rng, batch, (length - context) // 2, self.n_pairs, self.alpha)

        tokens = rng.integers(self.first_filler, self.vocab_size, size=(batch, length))
        return _ask(tokens, keys, values, queries)


class ZoologyMqarTask(Task):
    """Multi-query associative recall with the vocabulary and the settings of the published generator of "Zoology"
    (Arora et al. 2023, arXiv 2312.04927, appendix D), where `MqarTask` has small vocabularies and filler of its own.

    The format is that of `MqarTask`: `n_pairs` pairs `[key][value]`, then every key once more, `2 g` tokens after the
    last pair, where its value is scored. Ids: 0 is filler, keys are `1..vocabulary // 2 - 1`, values the rest; keys and
    values are distinct within a sequence.

    n_pairs: `num_kv_pairs`. alpha: `power_a`. random_non_queries: filler is drawn from the whole vocabulary, in which
    case it can repeat a key, with anything after it; the value asked for is that of the pair. Else filler is 0.
    """

    task: Literal["mqar_zoology"] = "mqar_zoology"
    n_pairs: Size = 8
    vocabulary: Vocabulary = Field(default=8192, ge=4)
    alpha: Real = Field(default=0.01, gt=0)
    random_non_queries: bool = True

    @model_validator(mode="after")
    def _check(self) -> ZoologyMqarTask:
        if self.first_value - 1 < self.n_pairs:
            raise ValueError(f"vocabulary={self.vocabulary} has fewer than n_pairs={self.n_pairs} distinct keys")
        return self

    @property
    def first_value(self) -> int:
        return self.vocabulary // 2

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - self.first_value)

    @property
    def min_length(self) -> int:
        return 4 * self.n_pairs

    @property
    def load(self) -> int:
        return self.n_pairs

    def with_load(self, load: int) -> ZoologyMqarTask:
        return ZoologyMqarTask.model_validate({**self.model_dump(), "n_pairs": load})

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        keys = 1 + draws.distinct(rng, batch, self.first_value - 1, self.n_pairs)
        values = self.first_value + draws.distinct(rng, batch, self.vocabulary - self.first_value, self.n_pairs)
        context = 2 * self.n_pairs
        queries = context + 2 * _draw_slots(rng, batch, (length - context) // 2, self.n_pairs, self.alpha)
        filler = rng.integers(self.vocabulary if self.random_non_queries else 1, size=(batch, length))
        return _ask(filler, keys, values, queries)


def _ask(filler: np.ndarray, keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> Batch:
    """`filler [batch, time]` with the pairs (each `[batch, pairs]`) at its start, and the keys again at `queries`."""
    n_pairs = keys.shape[1]
    filler[:, 0 : 2 * n_pairs : 2], filler[:, 1 : 2 * n_pairs : 2] = keys, values
    np.put_along_axis(filler, queries, keys, axis=1)
    result = Batch.of(filler)
    positions, pairs = torch.from_numpy(queries), torch.arange(n_pairs).expand(len(keys), -1)
    result.targets.scatter_(1, positions, torch.from_numpy(values))
    result.depths.scatter_(1, positions, pairs / max(1, n_pairs - 1))
    result.distances.scatter_(1, positions, positions - (2 * pairs + 1))
    return result


def _draw_slots(rng: np.random.Generator, batch: int, n_slots: int, n_pairs: int, alpha: float) -> np.ndarray:
    """Slots of the queries, `[batch, n_pairs]`, distinct in a row."""
    log_weights = (alpha - 1) * np.log(np.arange(1, n_slots + 1))
    # the largest of log-weight plus Gumbel noise are a weighted draw without replacement
    order = np.argsort(-(log_weights + rng.gumbel(size=(batch, n_slots))), axis=1)
    return order[:, :n_pairs]


def _draw_distinct(rng: np.random.Generator, batch: int, n: int, count: int) -> np.ndarray:
    return rng.permuted(np.tile(np.arange(n), (batch, 1)), axis=1)[:, :count]
