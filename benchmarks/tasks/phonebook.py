"""A phone book: names and numbers, then a name whose number is to be said."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...mixers.limits import Digits, Size
from . import draws
from .base import Batch, Split, Task

N_LETTERS, N_DIGITS = 26, 10


class PhonebookTask(Task):
    """Look up numbers by name in a phone book that was read (Jelassi et al. 2024, "Repeat after me", arXiv 2402.01032,
    section 4.2).

    An entry is `[letter]...[:][digit]...[;]`, with distinct names of `name_letters` random letters and numbers of
    `digits` random digits. A sequence is `n_entries` entries, with blanks put between them at random, then `[ask]`,
    then the entries that are asked for, in random order; each digit of those is scored, with those before it given.
    Ids: 26 letters, 10 digits, `:`, `;`, the ask marker, the blank. Depth is where the entry starts, the same for all
    its digits.

    n_entries: entries in the book; "all" takes as many as the length holds, so that hardly any blanks are left.
    asked: how many of them are asked for.
    """

    task: Literal["phonebook"] = "phonebook"
    n_entries: Literal["all"] | int = "all"
    asked: Size = 1
    name_letters: Size = Field(default=4, le=8)
    digits: Digits = 7

    @model_validator(mode="after")
    def _check(self) -> PhonebookTask:
        if self.n_entries == "all":
            return self
        if self.n_entries < self.asked:
            raise ValueError(f'n_entries={self.n_entries} must be "all" or at least asked={self.asked}')
        if self.n_entries > N_LETTERS**self.name_letters:
            raise ValueError(f"name_letters={self.name_letters} do not make {self.n_entries} distinct names; take more")
        return self

    @property
    def name_end_id(self) -> int:
        return N_LETTERS + N_DIGITS

    @property
    def entry_end_id(self) -> int:
        return self.name_end_id + 1

    @property
    def ask_id(self) -> int:
        return self.name_end_id + 2

    @property
    def blank_id(self) -> int:
        return self.name_end_id + 3

    @property
    def vocab_size(self) -> int:
        return self.blank_id + 1

    @property
    def chance(self) -> float:
        return 1 / N_DIGITS

    @property
    def min_length(self) -> int:
        n = self.asked if self.n_entries == "all" else self.n_entries
        return 1 + self._entry * (n + self.asked)

    @property
    def load(self) -> int | None:
        return None if self.n_entries == "all" else self.n_entries

    def with_load(self, load: int) -> PhonebookTask:
        return PhonebookTask.model_validate({**self.model_dump(), "n_entries": load})

    def context_length(self, length: int) -> int:
        return length - 1 - self._entry * self.asked

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        context, width = self.context_length(length), self._entry
        n = self._n_listed(context)
        book = self._book(rng, batch, n)
        starts = draws.starts(draws.gaps(draws.depths(rng, split, batch, n), context - n * width), width)
        asked = draws.distinct(rng, batch, n, self.asked)

        rows = np.arange(batch)[:, None]
        tokens = np.full((batch, length), self.blank_id)
        tokens[rows, (starts[..., None] + np.arange(width)).reshape(batch, -1)] = book.reshape(batch, -1)
        tokens[:, context] = self.ask_id
        tokens[:, context + 1 :] = book[rows, asked].reshape(batch, -1)

        result = Batch.of(tokens)
        digits = self.name_letters + 1 + np.arange(self.digits)
        answers_at = (context + 1 + width * np.arange(self.asked)[:, None] + digits).reshape(-1)
        found_at = starts[rows, asked]
        result.ask(
            at=np.tile(answers_at - 1, (batch, 1)),
            answers=tokens[:, answers_at],
            depths=np.repeat(found_at / max(1, context - width), self.digits, axis=1),
            found_at=(found_at[..., None] + digits).reshape(batch, -1),
        )
        return result

    @property
    def _entry(self) -> int:
        """Tokens of an entry."""
        return self.name_letters + self.digits + 2

    def _n_listed(self, context: int) -> int:
        if self.n_entries != "all":
            return self.n_entries
        return min(context // self._entry, N_LETTERS**self.name_letters)

    def _book(self, rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
        """Entries, `[batch, n, tokens]`."""
        names = draws.distinct(rng, batch, N_LETTERS**self.name_letters, n)
        entries = np.empty((batch, n, self._entry), dtype=np.int64)
        entries[..., : self.name_letters] = names[..., None] // N_LETTERS ** np.arange(self.name_letters) % N_LETTERS
        entries[..., self.name_letters] = self.name_end_id
        entries[..., self.name_letters + 1 : -1] = N_LETTERS + rng.integers(N_DIGITS, size=(batch, n, self.digits))
        entries[..., -1] = self.entry_end_id
        return entries
