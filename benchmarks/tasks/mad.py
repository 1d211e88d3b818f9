"""The six tasks of mechanistic architecture design, MAD (Poli et al. 2024, arXiv 2403.17844, section 3).

Defaults are MAD's baseline settings; its lengths are 128 for recall, 256 for selective copying, and 32 for compression
and memorization. MAD trains the recall tasks on every next token and tests the answers; here the answers alone are
scored in training as well. MAD trains on a fixed number of examples, here there is no end to them.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from ...mixers.limits import Real, Seed, Size, Vocabulary
from . import draws
from .base import Batch, Split, Task


class _PairRecall(Task):
    """What recall has in common with noisy recall. Slots of two tokens, each a pair or noise."""

    n_pairs: Literal["all"] | int = "all"
    vocabulary: Vocabulary = Field(default=16, ge=4)

    @model_validator(mode="after")
    def _check_pairs(self) -> _PairRecall:
        if self._first_noise < 4:
            raise ValueError(f"vocabulary={self.vocabulary} leaves {self._first_noise} ids for keys and values, not 4")
        if not 1 <= self.load <= self.first_value:
            raise ValueError(f'n_pairs={self.n_pairs} must be "all" or between 1 and the {self.first_value} keys')
        return self

    @property
    def first_value(self) -> int:
        return self._first_noise // 2

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def chance(self) -> float:
        return 1 / (self._first_noise - self.first_value)

    @property
    def min_length(self) -> int:
        return 3

    @property
    def load(self) -> int:
        return self.first_value if self.n_pairs == "all" else self.n_pairs

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        n_slots = (length + 1) // 2
        keys = draws.distinct(rng, batch, self.first_value, self.load)
        values = rng.integers(self.first_value, self._first_noise, size=(batch, self.load))
        pairs = rng.integers(self.load, size=(batch, n_slots))
        slots = np.stack([np.take_along_axis(table, pairs, axis=1) for table in (keys, values)], axis=2)
        self._add_noise(rng, slots)
        # the last slot asks for one of the keys shown before, each with equal chance
        is_new = (slots[..., 0] < self.first_value) & (draws.previous(slots[..., 0]) < 0)
        picked = np.where(is_new[:, :-1], rng.random((batch, n_slots - 1)), -1).argmax(axis=1)
        slots[:, -1] = slots[np.arange(batch), picked]

        tokens = slots.reshape(batch, -1)[:, :length]
        is_key = (tokens < self.first_value) & (np.arange(length) % 2 == 0)
        # values and noise get an id for each place, so that only keys are found again
        shown_at = draws.previous(np.where(is_key, tokens, self.vocabulary + np.arange(length)))
        result = Batch.of(tokens)
        result.ask_where(shown_at >= 0, shown_at + 1)
        return result

    @property
    def _first_noise(self) -> int:
        return self.vocabulary

    def _add_noise(self, rng: np.random.Generator, slots: np.ndarray) -> None:
        """Write noise over some of `slots [batch, slots, 2]`."""


class MadRecallTask(_PairRecall):
    """MAD's in-context recall: say the values of keys that were shown before.

    A sequence is pairs `[key][value]`; keys are drawn at random, and each keeps its value, itself random, throughout
    the sequence. Wherever a key comes that came before, its value is scored; the last key always is one. An odd length
    ends with a key. Ids: keys are the first half of `vocabulary`, values the second.

    n_pairs: how many of the keys a sequence draws from; MAD draws from all.
    """

    task: Literal["mad_recall"] = "mad_recall"

    def with_load(self, load: int) -> MadRecallTask:
        return MadRecallTask.model_validate({**self.model_dump(), "n_pairs": load})


class MadNoisyRecallTask(_PairRecall):
    """MAD's noisy in-context recall: `mad_recall` with noise between the pairs.

    In place of a pair there are two noise tokens with probability `noise`, but for one place at least, and the last.
    Ids: the last `n_noise` of `vocabulary` are noise; of the others the first half are keys, the second values.
    """

    task: Literal["mad_noisy_recall"] = "mad_noisy_recall"
    vocabulary: Vocabulary = Field(default=32, ge=5)
    n_noise: Vocabulary = 16
    noise: Real = Field(default=0.2, ge=0, lt=1)

    def with_load(self, load: int) -> MadNoisyRecallTask:
        return MadNoisyRecallTask.model_validate({**self.model_dump(), "n_pairs": load})

    @property
    def _first_noise(self) -> int:
        return self.vocabulary - self.n_noise

    def _add_noise(self, rng: np.random.Generator, slots: np.ndarray) -> None:
        batch, n_slots, _ = slots.shape
        noisy = rng.random((batch, n_slots)) < self.noise
        noisy[np.arange(batch), rng.integers(n_slots - 1, size=batch)] = noisy[:, -1] = False
        slots[noisy] = rng.integers(self._first_noise, self.vocabulary, size=(noisy.sum(), 2))


class MadFuzzyRecallTask(Task):
    """MAD's fuzzy in-context recall: keys and values are made of several tokens.

    A sequence is blanks, then keys and values in turn; each is 1 to `key_tokens` or `value_tokens` different tokens,
    all lengths equally likely, and a key, in the same order, keeps its value throughout the sequence. Keys of
    validation and evaluation all have `key_tokens` tokens. Of a key that was shown before, every token of the value is
    scored, the first of them at the key's last token; the last key in a sequence always is one. Since a key can be the
    beginning of a longer one, only what is scored tells where it ends. Ids: of `vocabulary - 1`, the first half are of
    keys, the rest of values; the last is the blank.
    """

    task: Literal["mad_fuzzy_recall"] = "mad_fuzzy_recall"
    vocabulary: Vocabulary = Field(default=16, ge=3)
    key_tokens: Size = 3
    value_tokens: Size = 3

    @model_validator(mode="after")
    def _check(self) -> MadFuzzyRecallTask:
        if self.first_value < self.key_tokens or self.blank_id - self.first_value < self.value_tokens:
            raise ValueError(
                f"vocabulary={self.vocabulary} has {self.first_value} ids for keys of {self.key_tokens} different "
                f"tokens, and {self.blank_id - self.first_value} for values of {self.value_tokens}; take more"
            )
        return self

    @property
    def first_value(self) -> int:
        return (self.vocabulary - 1) // 2

    @property
    def blank_id(self) -> int:
        return self.vocabulary - 1

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def chance(self) -> float:
        """Of the first token of a value."""
        return 1 / (self.blank_id - self.first_value)

    @property
    def min_length(self) -> int:
        return 2 * (self.key_tokens + self.value_tokens)

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        shape = batch, length // 2
        every = np.arange(shape[1])
        keys, key_sizes = self._motifs(rng, shape, self.first_value, self.key_tokens, split != "train")
        values, value_sizes = self._motifs(rng, shape, self.blank_id - self.first_value, self.value_tokens, False)
        values += self.first_value

        # the last pair repeats one that is shown, each with equal chance; `n` of them fit before the longest
        names = self._names(keys, key_sizes)
        owner = draws.first(names)
        sizes = key_sizes + np.take_along_axis(value_sizes, owner, axis=1)
        n = (sizes.cumsum(axis=1) <= length - self.key_tokens - self.value_tokens).sum(axis=1, keepdims=True)
        is_new = (owner == every) & (every < n)
        picked = np.where(is_new, rng.random(shape), -1).argmax(axis=1)
        origin = np.where(every == n, picked[:, None], every)
        keys, key_sizes = (_take(a, origin) for a in (keys, key_sizes))
        values, value_sizes = (_take(a, _take(owner, origin)) for a in (values, value_sizes))
        sizes = np.where(every <= n, key_sizes + value_sizes, 0)
        starts = length - sizes.sum(axis=1, keepdims=True) + sizes.cumsum(axis=1) - sizes
        return self._batch(length, starts, keys, key_sizes, values, value_sizes, every <= n)

    def _batch(
        self,
        length: int,
        starts: np.ndarray,
        keys: np.ndarray,
        key_sizes: np.ndarray,
        values: np.ndarray,
        value_sizes: np.ndarray,
        used: np.ndarray,
    ) -> Batch:
        """Write down the `used` pairs, and score the values of those whose key came before."""
        tokens = np.full((len(starts), length), self.blank_id)
        found_at = np.zeros_like(tokens)
        shown = np.where(used, draws.previous(self._names(keys, key_sizes)), -1)
        ends = starts + key_sizes
        for i in range(self.key_tokens):
            rows, columns = np.nonzero(used & (i < key_sizes))
            tokens[rows, starts[rows, columns] + i] = keys[rows, columns, i]
        for i in range(self.value_tokens):
            rows, columns = np.nonzero(used & (i < value_sizes))
            tokens[rows, ends[rows, columns] + i] = values[rows, columns, i]
            rows, columns = np.nonzero((shown >= 0) & (i < value_sizes))
            found_at[rows, ends[rows, columns] + i - 1] = ends[rows, shown[rows, columns]] + i
        result = Batch.of(tokens)
        result.ask_where(found_at > 0, found_at)
        return result

    @staticmethod
    def _motifs(
        rng: np.random.Generator, shape: tuple[int, ...], n: int, longest: int, only_longest: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Different numbers below `n`, `[*shape, longest]`, and how many of them count, `shape`."""
        motifs = draws.distinct(rng, shape[0] * shape[1], n, longest).reshape(*shape, longest)
        sizes = np.full(shape, longest) if only_longest else rng.integers(1, longest + 1, size=shape)
        return motifs, sizes

    def _names(self, keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """A number for each key."""
        counts = np.arange(self.key_tokens) < sizes[..., None]
        digits = np.where(counts, keys + 1, 0)
        return digits @ (self.first_value + 1) ** np.arange(self.key_tokens)


class MadSelectiveCopyTask(Task):
    """MAD's selective copying: say again, in order, the symbols that came among blanks.

    A sequence is `n_tokens` random symbols with blanks at random places among them, then `[copy]`, then `n_tokens`
    blanks; at each of these one of the symbols is scored, with none of the others given. Ids: of `vocabulary`, the last
    is the copy marker, the one before it the blank, the rest are symbols.
    """

    task: Literal["mad_selective_copy"] = "mad_selective_copy"
    n_tokens: Size = 16
    vocabulary: Vocabulary = Field(default=16, ge=4)

    @property
    def blank_id(self) -> int:
        return self.vocabulary - 2

    @property
    def copy_id(self) -> int:
        return self.vocabulary - 1

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 2)

    @property
    def min_length(self) -> int:
        return 2 * self.n_tokens + 1

    @property
    def load(self) -> int:
        return self.n_tokens

    def with_load(self, load: int) -> MadSelectiveCopyTask:
        return MadSelectiveCopyTask.model_validate({**self.model_dump(), "n_tokens": load})

    def context_length(self, length: int) -> int:
        return length - 1 - self.n_tokens

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context = self.context_length(length)
        symbols = rng.integers(self.blank_id, size=(batch, self.n_tokens))
        places = np.sort(draws.distinct(rng, batch, context, self.n_tokens), axis=1)
        tokens = np.full((batch, length), self.blank_id)
        np.put_along_axis(tokens, places, symbols, axis=1)
        tokens[:, context] = self.copy_id
        result = Batch.of(tokens)
        questions = np.tile(context + 1 + np.arange(self.n_tokens), (batch, 1))
        result.ask(questions, symbols, places / max(1, context - 1), places)
        return result


class MadCompressionTask(Task):
    """MAD's compression, as next-token prediction: say which symbol stood where, for all places in random order.

    In MAD a sequence of random symbols ends with `[compress]`; from that one position's output and the encoding of a
    place, a decoder (an MLP) has to say the symbol at that place. A language model has no such decoder, so here the
    places follow as tokens: blanks, then `n_tokens` symbols, `[compress]`, then the tokens of all `n_tokens` places in
    random order, each scored with its symbol. Nothing forces what is known through one position, so that this asks for
    addressing by place rather than for a bottleneck; models whose state is fixed have to compress, others need not.
    Ids: of `vocabulary` the last is `[compress]`, the rest are symbols; then the blank and `max_tokens` places.

    n_tokens: MAD has 31, one less than its length. max_tokens: the largest `n_tokens` with the same ids.
    """

    task: Literal["mad_compression"] = "mad_compression"
    n_tokens: Size = 31
    max_tokens: Size = 256
    vocabulary: Vocabulary = Field(default=16, ge=3)

    @model_validator(mode="after")
    def _check(self) -> MadCompressionTask:
        if self.n_tokens > self.max_tokens:
            raise ValueError(f"n_tokens={self.n_tokens} must be at most max_tokens={self.max_tokens}")
        return self

    @property
    def compress_id(self) -> int:
        return self.vocabulary - 1

    @property
    def blank_id(self) -> int:
        return self.vocabulary

    @property
    def first_place(self) -> int:
        return self.vocabulary + 1

    @property
    def vocab_size(self) -> int:
        return self.first_place + self.max_tokens

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 1)

    @property
    def min_length(self) -> int:
        return 2 * self.n_tokens + 1

    @property
    def load(self) -> int:
        return self.n_tokens

    def with_load(self, load: int) -> MadCompressionTask:
        return MadCompressionTask.model_validate({**self.model_dump(), "n_tokens": load})

    def context_length(self, length: int) -> int:
        return length - 1 - self.n_tokens

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context = self.context_length(length)
        symbols = rng.integers(self.compress_id, size=(batch, self.n_tokens))
        asked = rng.permuted(np.tile(np.arange(self.n_tokens), (batch, 1)), axis=1)
        tokens = np.full((batch, length), self.blank_id)
        tokens[:, context - self.n_tokens : context] = symbols
        tokens[:, context] = self.compress_id
        tokens[:, context + 1 :] = self.first_place + asked
        result = Batch.of(tokens)
        questions = np.tile(context + 1 + np.arange(self.n_tokens), (batch, 1))
        found_at = context - self.n_tokens + asked
        result.ask(questions, np.take_along_axis(symbols, asked, axis=1), found_at / max(1, context - 1), found_at)
        return result


class MadMemorizationTask(Task):
    """MAD's memorization: say the values of keys by a table that is the same in all sequences, and in none of them.

    A sequence is `[key][insert]` over and over, with random keys; at each `[insert]` the value of the key before it is
    scored. What is measured is what training has put into the weights. Ids: of `vocabulary - 1`, the first half are
    keys, the rest values, the last is `[insert]`. The value of key k is number k of a random permutation of the values,
    that of `numpy.random.default_rng(table)`.

    n_facts: how many keys, counted from 0, are used; MAD uses all.
    """

    task: Literal["mad_memorization"] = "mad_memorization"
    n_facts: Literal["all"] | int = "all"
    vocabulary: Vocabulary = Field(default=256, ge=4)
    table: Seed = 12345

    @model_validator(mode="after")
    def _check(self) -> MadMemorizationTask:
        if not 1 <= self.load <= self.first_value:
            raise ValueError(f'n_facts={self.n_facts} must be "all" or between 1 and the {self.first_value} keys')
        return self

    @property
    def first_value(self) -> int:
        return self.insert_id // 2

    @property
    def insert_id(self) -> int:
        return self.vocabulary - 1

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def chance(self) -> float:
        """Of somebody who does not know the table."""
        return 1 / (self.insert_id - self.first_value)

    @property
    def min_length(self) -> int:
        return 2

    @property
    def load(self) -> int:
        return self.first_value if self.n_facts == "all" else self.n_facts

    def with_load(self, load: int) -> MadMemorizationTask:
        return MadMemorizationTask.model_validate({**self.model_dump(), "n_facts": load})

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        """See `Task.sample`. Answers stand nowhere: `depths` are nan and `distances` 0."""
        self.check_length(length)
        keys = rng.integers(self.load, size=(batch, (length + 1) // 2))
        tokens = np.full((batch, length), self.insert_id)
        tokens[:, ::2] = keys
        result = Batch.of(tokens)
        answers = _table(self.table, self.first_value, self.insert_id)[keys[:, : length // 2]]
        result.targets[:, 1::2] = torch.from_numpy(answers)
        return result


@functools.lru_cache
def _table(seed: int, first_value: int, end: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(first_value, end))


def _take(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`values[row, columns[row]]` for every row."""
    return values[np.arange(len(values))[:, None], columns]
