"""RULER's two tasks of counting: common words and frequent words."""

from __future__ import annotations

import bisect
import functools
import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from ...mixers.limits import Real, Size
from .base import Batch, Split
from .ruler_bytes import (
    LOWERCASE,
    N_WORDS,
    SYLLABLES,
    WORD_CHANCE,
    WORD_SYLLABLES,
    WORD_WIDTH,
    Phrase,
    RulerTask,
    draw_distinct,
    pad_front,
    scored,
    spell,
)

CODE_WIDTH = 6
_N_CODES = 26**CODE_WIDTH
_SHORT = 4096  # from this length on the published generator repeats words
_OFTEN, _SELDOM = (30, 3), (6, 1)  # as often as this, and below it as this
_TOKENS_PER_RANK = 50
_MOST_WORDS = 2**40


class RulerCommonWordsTask(RulerTask):
    """Common words extraction as in RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3).

    A numbered list in random order has `n_common` common words, and as many others as the length allows. The common
    ones are asked for. The load is their number.

    n_common: 10 in the paper. frequencies: how often a common word and another one stand in the list; without it 30 and
    3 as in the paper, or where that does not fit and below 4,096 tokens, 6 and 1 as in the published generator.
    wording: see `RulerTask`; `short` leaves out the numbers of the list too.

    Unlike the paper: ids are bytes, so that a length holds fewer words; words are invented ones of six letters; the
    answer lists them in the order of their first places in the list; no example is given before; what is left of the
    length is filled with line breaks at the start. Depths are nan, since the answer is nowhere in particular, and
    distances go back to a word's first place.
    """

    task: Literal["ruler_common_words"] = "ruler_common_words"
    n_common: Size = 10
    frequencies: tuple[Size, Size] | None = None

    @model_validator(mode="after")
    def _check(self) -> RulerCommonWordsTask:
        if self.frequencies and not self.frequencies[0] > self.frequencies[1] >= 1:
            raise ValueError(
                "frequencies must be those of common words, then of the others, such as [30, 3]; "
                f"got {list(self.frequencies)}"
            )
        return self

    @property
    def chance(self) -> float:
        return WORD_CHANCE

    @property
    def min_length(self) -> int:
        return self._needed(*(self.frequencies or _SELDOM))

    @property
    def load(self) -> int:
        return self.n_common

    def with_load(self, load: int) -> RulerCommonWordsTask:
        return RulerCommonWordsTask.model_validate({**self.model_dump(), "n_common": load})

    def context_length(self, length: int) -> int:
        return length - self._question.width

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        often, seldom = self._frequencies(length)
        possible = range(N_WORDS - self.n_common + 1)
        n_uncommon = bisect.bisect_right(possible, length, key=lambda n: self._needed(often, seldom, n)) - 1
        words = spell(draw_distinct(rng, batch, N_WORDS, self.n_common + n_uncommon), SYLLABLES, WORD_SYLLABLES)
        once = np.repeat(np.arange(words.shape[1]), [often] * self.n_common + [seldom] * n_uncommon)
        order = rng.permuted(np.tile(once, (batch, 1)), axis=1)
        common = np.tile(np.arange(self.n_common), (batch, 1))
        answers = np.argsort(first_places(order, common), axis=1)
        entries = _entries(order.shape[1], self.wording == "paper")
        return write_list(self._opening, entries, self._question, words, order, answers, length)

    def _frequencies(self, length: int) -> tuple[int, int]:
        if self.frequencies:
            return self.frequencies
        return _OFTEN if length >= max(_SHORT, self._needed(*_OFTEN)) else _SELDOM

    def _needed(self, often: int, seldom: int, n_uncommon: int = 1) -> int:
        """Tokens of a sequence with that many other words."""
        listed = self.n_common * often + n_uncommon * seldom
        return self._opening.width + list_width(listed, self.wording == "paper") + self._question.width

    @property
    def _opening(self) -> Phrase:
        paper = (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
            "that appear most often.\n"
        )
        return Phrase(paper if self.wording == "paper" else "")

    @property
    def _question(self) -> Phrase:
        n = self.n_common
        if self.wording == "short":
            return Phrase(f"\n? {' '.join(['{word}'] * n)}", word=WORD_WIDTH)
        answers = " ".join(f"{i + 1}. {{word}}" for i in range(n))
        asked = f"\nQuestion: What are the {n} most common words in the above list? "
        said = f"Answer: The top {n} words that appear most often in the list are: {answers}"
        return Phrase(asked + said, word=WORD_WIDTH)


class RulerFrequentWordsTask(RulerTask):
    """Frequent words extraction as in RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3).

    Coded words of six random letters in random order; the k-th most frequent stands `floor(N k ** -alpha /
    zeta(alpha))` times, with the greatest N that the length allows, and at most a fiftieth as many different words as
    tokens. The most frequent is a run of dots and noise; the `n_frequent` after it are asked for. The load is their
    number.

    alpha: of the Zeta distribution, 2 in the paper. n_frequent: 3 in the paper. wording: see `RulerTask`.

    Unlike the paper: ids are bytes, so that a length holds fewer words; the noise has six dots, not three; the answer
    goes from the most frequent down; what is left of the length is filled with line breaks at the start. Depths and
    distances as in `RulerCommonWordsTask`.
    """

    task: Literal["ruler_frequent_words"] = "ruler_frequent_words"
    alpha: Real = Field(default=2.0, gt=1)
    n_frequent: Size = 3

    @property
    def chance(self) -> float:
        return 1 / 26

    @property
    def min_length(self) -> int:
        """A length from which on no two of the asked ranks, nor the next, have the same count."""
        shares = zeta_shares(self.alpha, self.n_frequent + 2)
        n = math.ceil(1 / (shares[-2] - shares[-1])) + 1  # then the counts of neighbours differ by one or more
        return max(self._around + list_width(n, False), _TOKENS_PER_RANK * (self.n_frequent + 1))

    @property
    def load(self) -> int:
        return self.n_frequent

    def with_load(self, load: int) -> RulerFrequentWordsTask:
        return RulerFrequentWordsTask.model_validate({**self.model_dump(), "n_frequent": load})

    def context_length(self, length: int) -> int:
        return length - self._question.width

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        counts = zeta_counts(self.alpha, length // _TOKENS_PER_RANK, length - self._around)
        codes = spell(draw_distinct(rng, batch, _N_CODES, len(counts)), LOWERCASE, CODE_WIDTH)
        codes[:, 0] = ord(".")
        order = rng.permuted(np.tile(np.repeat(np.arange(len(counts)), counts), (batch, 1)), axis=1)
        answers = np.tile(np.arange(1, self.n_frequent + 1), (batch, 1))
        entries = _entries(order.shape[1], False)
        return write_list(self._opening, entries, self._question, codes, order, answers, length)

    @property
    def _around(self) -> int:
        return self._opening.width + self._question.width

    @property
    def _number(self) -> str:
        return "three" if self.n_frequent == 3 else str(self.n_frequent)

    @property
    def _opening(self) -> Phrase:
        paper = (
            "Read the following coded text and track the frequency of each coded word. Find the "
            f"{self._number} most frequently appeared coded words. "
        )
        return Phrase(paper if self.wording == "paper" else "")

    @property
    def _question(self) -> Phrase:
        answers = " ".join(["{word}"] * self.n_frequent)
        paper = (
            "\nQuestion: Do not provide any explanation. Please ignore the dots '......'. What are the "
            f"{self._number} most frequently appeared words in the above coded text? Answer: According to the coded "
            f"text above, the {self._number} most frequently appeared words are: {answers}"
        )
        return Phrase(paper if self.wording == "paper" else f"\n? {answers}", word=CODE_WIDTH)


def write_list(
    opening: Phrase,
    entries: Phrase,
    question: Phrase,
    words: np.ndarray,
    order: np.ndarray,
    answers: np.ndarray,
    length: int,
) -> Batch:
    """A list of words and the question for some of them, `length` tokens.

    words: uint8 `[batch, different words, width]`. order: which word each entry is, `[batch, entries]`. answers: which
    are asked for, `[batch, answers]`.
    """
    batch, width = len(words), words.shape[-1]
    rows = np.arange(batch)[:, None]
    parts = [
        opening.write(batch),
        entries.write(batch, word=words[rows, order]),
        question.write(batch, word=words[rows, answers]),
    ]
    tokens = pad_front(np.concatenate(parts, axis=1), length)
    context = length - question.width
    places = context - entries.width + entries.starts["word"]
    found = places[first_places(order, answers)]
    return scored(tokens, context + question.starts["word"], width, found, context, one_place=False)


def first_places(order: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Where each of the `words [batch, count]` first stands in the rows of `order [batch, entries]`."""
    return np.stack([(order == word[:, None]).argmax(axis=1) for word in words.T], axis=1)


def list_width(entries: int, numbered: bool) -> int:
    """Bytes of a list of that many words."""
    if entries == 0:
        return 0
    digits = sum(entries - 10**power + 1 for power in range(len(str(entries)))) if numbered else 0
    return entries * (WORD_WIDTH + (3 if numbered else 1)) - 1 + digits


@functools.lru_cache(maxsize=8)
def _entries(count: int, numbered: bool) -> Phrase:
    template = " ".join(f"{i + 1}. {{word}}" for i in range(count)) if numbered else " ".join(["{word}"] * count)
    return Phrase(template, word=WORD_WIDTH)


def zeta_shares(alpha: float, ranks: int) -> np.ndarray:
    """Probabilities of the first ranks of the Zeta distribution, float64 `[ranks]`."""
    total = torch.special.zeta(torch.tensor(alpha, dtype=torch.float64), 1.0).item()
    return np.arange(1, ranks + 1, dtype=np.float64) ** -alpha / total


@functools.lru_cache(maxsize=64)
def zeta_counts(alpha: float, ranks: int, available: int) -> np.ndarray:
    """How often each rank stands in a text of at most `available` bytes, falling, int64 `[different words]`."""
    shares = zeta_shares(alpha, ranks)

    def needed(n: int) -> int:
        return list_width(int(np.floor(n * shares).sum()), False)

    counts = np.floor((bisect.bisect_right(range(_MOST_WORDS), available, key=needed) - 1) * shares).astype(np.int64)
    return counts[counts > 0]
