"""Domain shift: what was learnt of one domain, while another one is learnt, and when the first comes back."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...mixers.limits import Size, Vocabulary
from . import draws
from .base import Batch, Split, Task


class DomainShiftTask(Task):
    """Learn a table of keys and values from a stream, then another one with the same keys, then the first again.

    It measures adaptation and retention, as continual learning has them (McCloskey & Cohen 1989, "Catastrophic
    interference in connectionist networks"), within one sequence.

    A sequence runs through the domains of `schedule`, one phase for each letter. A phase is the domain's marker and
    then pairs `[key][value]`, in rounds: each of the sequence's `n_pairs` keys once, in an order drawn for the round.
    Domains share the keys, and give each of them different values. A key whose pair was shown in this domain before is
    scored. So the first round of a domain's first phase is not scored, later rounds show adaptation, and the first
    round of a phase that comes back shows retention: its answers stood before another domain's phase, and have not
    come since. Ids: a marker for each of the letters A to Z that `schedule` has, `n_keys` keys, `n_values` values.

    `phases` tells the phase of every position, and `rounds` its round, for a given length; both are the same in all
    sequences.
    """

    task: Literal["domain_shift"] = "domain_shift"
    n_pairs: Size = 8
    schedule: str = Field(default="ABA", pattern="^[A-Z]+$")
    n_keys: Vocabulary = 64
    n_values: Vocabulary = Field(default=64, ge=2)

    @model_validator(mode="after")
    def _check(self) -> DomainShiftTask:
        if self.n_keys < self.n_pairs:
            raise ValueError(f"n_keys={self.n_keys} cannot give n_pairs={self.n_pairs} distinct keys")
        if self.n_values < self.n_domains:
            raise ValueError(
                f"n_values={self.n_values} cannot give a key another value in each of {self.n_domains} domains"
            )
        return self

    @property
    def n_domains(self) -> int:
        return len(set(self.schedule))

    @property
    def first_key(self) -> int:
        return self.n_domains

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
        """Enough for more than one round in each phase."""
        return len(self.schedule) * (1 + 2 * (self.n_pairs + 1))

    @property
    def load(self) -> int:
        return self.n_pairs

    def with_load(self, load: int) -> DomainShiftTask:
        return DomainShiftTask.model_validate({**self.model_dump(), "n_pairs": load})

    def phases(self, length: int) -> np.ndarray:
        """The phase of each position, `0..len(schedule) - 1`; int64 `[length]`."""
        return np.searchsorted(self._starts(length), np.arange(length), side="right") - 1

    def rounds(self, length: int) -> np.ndarray:
        """The round within its phase of each position, from 0, int64 `[length]`; -1 at markers."""
        offsets = np.arange(length) - self._starts(length)[self.phases(length)] - 1
        return np.where(offsets < 0, -1, offsets // 2 // self.n_pairs)

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        starts, phases, rounds = self._starts(length), self.phases(length), self.rounds(length)
        domains = np.unique(list(self.schedule), return_inverse=True)[1][phases]
        keys = self.first_key + draws.distinct(rng, batch, self.n_keys, self.n_pairs)
        tables = draws.distinct(rng, batch * self.n_pairs, self.n_values, self.n_domains)
        values = self.first_value + tables.reshape(batch, self.n_pairs, self.n_domains)
        shape = batch, len(starts), rounds.max() + 1, self.n_pairs
        orders = rng.permuted(np.broadcast_to(np.arange(self.n_pairs), shape), axis=-1)

        offsets = np.arange(length) - starts[phases] - 1  # -1 at markers, then even at keys and odd at values
        pairs = orders[:, phases, rounds, offsets // 2 % self.n_pairs]
        in_order = np.take_along_axis(keys, pairs, axis=1)
        of_domain = values[np.arange(batch)[:, None], pairs, domains]
        tokens = np.where(offsets < 0, domains, np.where(offsets % 2 == 0, in_order, of_domain))

        is_key = (offsets >= 0) & (offsets % 2 == 0)
        # a pair in a domain is one id at its keys, and each other position has one of its own
        ids = np.where(is_key, pairs * self.n_domains + domains, self.n_pairs * self.n_domains + np.arange(length))
        shown_at = draws.previous(ids)
        result = Batch.of(tokens)
        result.ask_where(shown_at >= 0, shown_at + 1)
        return result

    def _starts(self, length: int) -> np.ndarray:
        """Positions of the markers. Phases have the same number of pairs, or one more."""
        phase = np.arange(len(self.schedule))
        n_pairs = (length - len(self.schedule)) // 2
        return phase + 2 * (phase * n_pairs // len(self.schedule))
