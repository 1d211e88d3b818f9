"""Needles in a haystack: key-value pairs hidden in real text, asked for at the end."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ...mixers.limits import Amount, Digits, Real, Size, Vocabulary
from . import draws
from .base import Batch, Split, Task
from .corpus import load_corpus

N_BYTES = 256
KEY_LETTERS = 4  # of a number needle
_THE_NUMBER_OF, _IS, _END = b"\nThe number of ", b" is ", b".\n"


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """What is written into the haystack, and into which of its gaps; all int64 `[batch, pairs]`."""

    keys: np.ndarray
    values: np.ndarray
    gaps: np.ndarray

    @classmethod
    def cat(cls, parts: list[_Pairs]) -> _Pairs:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names))


class NeedleTask(Task):
    """Find key-value needles again that were hidden in real text (after Kamradt's needle in a haystack, 2023).

    A sequence is a stretch of text with `n_needles` needles, each two tokens `[key][value]`, put between its bytes,
    then `[ask]`, then `[key][value]` for each needle that is asked for, in random order. The value after an asked key
    is what is scored. Keys within a sequence are distinct, values are random, so that earlier answers give nothing
    away. Ids: bytes `0..255`, the ask marker, `n_keys` keys, `n_values` values.

    n_needles: needles in a sequence. asked: how many of them are asked for. text_folder: a folder of text files for
    the haystack; without it, the source of Python's standard library.
    values_per_key: each needle is written that many times, in different places and with different values, and its
    question is `[key][value]...[value]`, all of them in the order in which they stood (RULER's multi-value needles,
    Hsieh et al. 2024, arXiv 2404.06654). distractors: further pairs `[key][value]` with keys of their own that are
    never asked for, at random places. overwrites: share of the needles that are written once more somewhere before,
    with another value; the last value counts, and depths and distances are its.
    """

    task: Literal["needle"] = "needle"
    n_needles: Size = 8
    asked: Literal["all"] | Size = "all"
    n_keys: Vocabulary = 64
    n_values: Vocabulary = Field(default=64, ge=2)
    values_per_key: Size = 1
    distractors: Amount = 0
    overwrites: Real = Field(default=0.0, ge=0, le=1)
    text_folder: str | None = None

    @model_validator(mode="after")
    def _check(self) -> NeedleTask:
        if self.n_keys < self.n_needles + self.distractors:
            others = f" and {self.distractors} distractors" if self.distractors else ""
            raise ValueError(f"n_keys={self.n_keys} cannot give {self.n_needles} needles{others} distinct keys")
        if not 1 <= self.n_asked <= self.n_needles:
            raise ValueError(f'asked={self.asked} must be "all" or between 1 and n_needles={self.n_needles}')
        if self.n_values < self.values_per_key:
            raise ValueError(f"n_values={self.n_values} cannot give a key {self.values_per_key} distinct values")
        if self.overwrites and self.values_per_key > 1:
            raise ValueError("overwrites and values_per_key > 1 contradict each other: take one of them")
        return self

    @property
    def n_asked(self) -> int:
        return self.n_needles if self.asked == "all" else self.asked

    @property
    def n_overwritten(self) -> int:
        """How many needles are written twice: `overwrites` of them, rounded."""
        return round(self.overwrites * self.n_needles)

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
        # values of a key are distinct, so that those said already are none of those to come
        return sum(1 / (self.n_values - i) for i in range(self.values_per_key)) / self.values_per_key

    @property
    def min_length(self) -> int:
        return 2 * self._n_pairs + 2 + self._question * self.n_asked

    @property
    def load(self) -> int:
        return self.n_needles

    def with_load(self, load: int) -> NeedleTask:
        return NeedleTask.model_validate({**self.model_dump(), "n_needles": load})

    def context_length(self, length: int) -> int:
        return length - 1 - self._question * self.n_asked

    def describe_text(self) -> dict[str, Any]:
        return load_corpus(self.text_folder).describe()

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context = self.context_length(length)
        n_text = context - 2 * self._n_pairs
        rows = np.arange(batch)[:, None]
        every_key = self.first_key + rng.permuted(np.tile(np.arange(self.n_keys), (batch, 1)), axis=1)
        keys, other_keys = every_key[:, : self.n_needles], every_key[:, self.n_needles :][:, : self.distractors]
        values = rng.integers(self.first_value, self.vocab_size, size=(batch, self.n_needles))
        n_written = self.n_needles * self.values_per_key
        gaps = draws.gaps(draws.depths(rng, split, batch, n_written), n_text)
        text = load_corpus(self.text_folder).split(split).windows(rng, batch, n_text, across=True)
        asked = rng.permuted(np.tile(np.arange(self.n_needles), (batch, 1)), axis=1)[:, : self.n_asked]

        values = self._further_values(rng, values)
        columns = self._columns(rng, batch)  # of the gaps, for each value
        needles = _Pairs(np.empty_like(gaps), np.empty_like(gaps), gaps)
        needles.keys[rows[..., None], columns], needles.values[rows[..., None], columns] = keys[..., None], values
        overwritten = self._overwritten(rng, needles)
        pairs = _Pairs.cat([overwritten, needles, self._distractors(rng, other_keys, n_text)])
        starts = draws.starts(pairs.gaps, 2)

        tokens = np.empty((batch, length), dtype=np.int64)
        is_text = np.ones((batch, context), dtype=bool)
        is_text[rows, starts] = is_text[rows, starts + 1] = False
        tokens[:, :context][is_text] = text.reshape(-1)
        tokens[rows, starts] = pairs.keys
        tokens[rows, starts + 1] = pairs.values
        tokens[:, context] = self.ask_id
        questions = context + 1 + np.arange(self._question * self.n_asked).reshape(self.n_asked, self._question)
        tokens[:, questions[:, 0]] = keys[rows, asked]
        tokens[:, questions[:, 1:]] = values[rows, asked]

        result = Batch.of(tokens)
        at = np.tile(questions[:, :-1].reshape(-1), (batch, 1))
        found_at = starts[rows, self.n_overwritten + columns[rows, asked].reshape(batch, -1)]
        result.ask(at, values[rows, asked].reshape(batch, -1), found_at / (context - 2), found_at + 1)
        return result

    @property
    def _n_pairs(self) -> int:
        return self.n_needles * self.values_per_key + self.n_overwritten + self.distractors

    @property
    def _question(self) -> int:
        """Tokens of a question with its answers."""
        return 1 + self.values_per_key

    def _further_values(self, rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
        """All values of each needle, `[batch, n_needles, values_per_key]`; the first of them are `values`."""
        further = draws.distinct(rng, values.size, self.n_values - 1, self.values_per_key - 1)
        steps = np.concatenate([np.zeros((values.size, 1), dtype=np.int64), 1 + further], axis=1)
        return self._other(values[..., None], steps.reshape(*values.shape, -1))

    def _columns(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Which of the sorted gaps each value goes into, `[batch, n_needles, values_per_key]`, rising for a needle."""
        owners = np.repeat(np.arange(self.n_needles), self.values_per_key)
        if self.values_per_key > 1:  # else needles are in random order already
            owners = rng.permuted(np.tile(owners, (batch, 1)), axis=1)
        order = np.argsort(owners, axis=-1, kind="stable")
        return np.broadcast_to(order, (batch, owners.shape[-1])).reshape(batch, self.n_needles, -1)

    def _overwritten(self, rng: np.random.Generator, needles: _Pairs) -> _Pairs:
        """Some of the needles with another value, before the place where they are written last."""
        batch = len(needles.keys)
        chosen = draws.distinct(rng, batch, self.n_needles, self.n_overwritten)
        keys, values, gaps = (np.take_along_axis(a, chosen, axis=1) for a in vars(needles).values())
        earlier = np.floor(rng.random(gaps.shape) * (gaps + 1)).astype(np.int64)
        return _Pairs(keys, self._other(values, rng.integers(1, self.n_values, size=values.shape)), earlier)

    def _distractors(self, rng: np.random.Generator, keys: np.ndarray, n_text: int) -> _Pairs:
        values = rng.integers(self.first_value, self.vocab_size, size=keys.shape)
        return _Pairs(keys, values, rng.integers(n_text + 1, size=keys.shape))

    def _other(self, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The values `steps` further on, in a circle."""
        return self.first_value + (values - self.first_value + steps) % self.n_values


class NeedleNumberTask(Task):
    """Find numbers again that were hidden in real text as text (after Zhao & Jones 2026, arXiv 2601.00671: five needles
    in the haystack, one asked, six digits).

    A needle is a line, `"\\nThe number of ABCD is 123456.\\n"`, put between the bytes of a stretch of text; keys are
    `KEY_LETTERS` capital letters, numbers are `digits` random digits. At the end the lines of the needles that are
    asked for come again, in random order, and each digit is scored, with those before it given. Ids are the bytes
    `0..255`. Depth is where the needle's line starts, the same for all its digits.

    n_needles: needles in a sequence. asked: how many of them are asked for. distractors: further lines at random places
    that are never asked for; each looks like a needle, whose key it has but for the last letter. Needles differ in the
    other letters. text_folder: as in `NeedleTask`.
    """

    task: Literal["needle_number"] = "needle_number"
    n_needles: Size = Field(default=5, le=26**3)
    asked: Literal["all"] | Size = 1
    digits: Digits = 6
    distractors: Amount = 0
    text_folder: str | None = None

    @model_validator(mode="after")
    def _check(self) -> NeedleNumberTask:
        if not 1 <= self.n_asked <= self.n_needles:
            raise ValueError(f'asked={self.asked} must be "all" or between 1 and n_needles={self.n_needles}')
        return self

    @property
    def n_asked(self) -> int:
        return self.n_needles if self.asked == "all" else self.asked

    @property
    def vocab_size(self) -> int:
        return N_BYTES

    @property
    def chance(self) -> float:
        return 1 / 10

    @property
    def min_length(self) -> int:
        return self._line_length * (self.n_needles + self.distractors + self.n_asked) + 1

    @property
    def load(self) -> int:
        return self.n_needles

    def with_load(self, load: int) -> NeedleNumberTask:
        return NeedleNumberTask.model_validate({**self.model_dump(), "n_needles": load})

    def context_length(self, length: int) -> int:
        return length - self._line_length * self.n_asked

    def describe_text(self) -> dict[str, Any]:
        return load_corpus(self.text_folder).describe()

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context, width = self.context_length(length), self._line_length
        n_text = context - width * (self.n_needles + self.distractors)
        rows = np.arange(batch)[:, None]
        lines = self._lines(rng, batch)
        gaps = draws.gaps(draws.depths(rng, split, batch, self.n_needles), n_text)
        other_gaps = rng.integers(n_text + 1, size=(batch, self.distractors))
        starts = draws.starts(np.concatenate([gaps, other_gaps], axis=1), width)
        text = load_corpus(self.text_folder).split(split).windows(rng, batch, n_text, across=True)
        asked = draws.distinct(rng, batch, self.n_needles, self.n_asked)

        tokens = np.empty((batch, length), dtype=np.int64)
        places = (starts[..., None] + np.arange(width)).reshape(batch, -1)
        is_text = np.ones((batch, context), dtype=bool)
        is_text[rows, places] = False
        tokens[:, :context][is_text] = text.reshape(-1)
        tokens[rows, places] = lines.reshape(batch, -1)
        tokens[:, context:] = lines[rows, asked].reshape(batch, -1)

        result = Batch.of(tokens)
        first_digit = len(_THE_NUMBER_OF) + KEY_LETTERS + len(_IS)
        digits = first_digit + np.arange(self.digits)
        answers_at = (context + width * np.arange(self.n_asked)[:, None] + digits).reshape(-1)
        found_at = starts[rows, asked]
        result.ask(
            at=np.tile(answers_at - 1, (batch, 1)),
            answers=tokens[:, answers_at],
            depths=np.repeat(found_at / (context - width), self.digits, axis=1),
            found_at=(found_at[..., None] + digits).reshape(batch, -1),
        )
        return result

    @property
    def _line_length(self) -> int:
        return len(_THE_NUMBER_OF) + KEY_LETTERS + len(_IS) + self.digits + len(_END)

    def _lines(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Lines of the needles, then of the distractors; int64 `[batch, lines, bytes]`."""
        n_lines = self.n_needles + self.distractors
        like = np.arange(n_lines) % self.n_needles
        stems = draws.distinct(rng, batch, 26 ** (KEY_LETTERS - 1), self.n_needles)
        last = rng.integers(26, size=stems.shape)[:, like]
        last[:, self.n_needles :] += rng.integers(1, 26, size=(batch, self.distractors))
        powers = 26 ** np.arange(KEY_LETTERS - 1)
        letters = np.concatenate([stems[:, like, None] // powers % 26, last[..., None] % 26], axis=2)
        numbers = rng.integers(10, size=(batch, n_lines, self.digits))
        fixed = [np.broadcast_to(list(s), (batch, n_lines, len(s))) for s in (_THE_NUMBER_OF, _IS, _END)]
        return np.concatenate([fixed[0], ord("A") + letters, fixed[1], ord("0") + numbers, fixed[2]], axis=2)
