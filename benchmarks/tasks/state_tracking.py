"""State tracking: the running product of elements of a group."""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import numpy as np
import torch

from .base import Batch, Split, Task


class StateTrackingTask(Task):
    """Say, after every token, the product of all elements of a group so far: its word problem (Merrill et al. 2024,
    "The illusion of state in state-space models", arXiv 2404.08819).

    Tokens are random elements `g_1, g_2, ...`; the target at t is `g_t ∘ ... ∘ g_1`, and every position is scored.
    Ids are the elements, in both. `parity` (bits and their sum modulo 2) and `z60` (numbers, modulo 60) are
    commutative; `s3` and `s5` are all permutations of 3 and 5 objects, `a5` those of 5 that are even, each numbered in
    lexicographic order, where the permutation p takes object i to place p[i] and `(g ∘ h)[i] = g[h[i]]`. Linear
    recurrences with a diagonal transition do not solve s5 and a5, and those without negative eigenvalues not even
    parity (Sarrof et al. 2024, arXiv 2405.17394; Grazzi et al. 2024, arXiv 2411.12537).
    """

    task: Literal["state_tracking"] = "state_tracking"
    group: Literal["parity", "z60", "s3", "a5", "s5"] = "s5"

    @property
    def vocab_size(self) -> int:
        return len(_products(self.group))

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    @property
    def min_length(self) -> int:
        return 1

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        """See `Task.sample`. The answer hangs on all tokens so far: `depths` are nan and `distances` 0."""
        self.check_length(length)
        products = _products(self.group)
        tokens = rng.integers(len(products), size=(batch, length))
        running, span = tokens.copy(), 1
        while span < length:  # `running` holds products of the last `span` elements
            running[:, span:] = products[running[:, span:], running[:, :-span]]
            span *= 2
        result = Batch.of(tokens)
        result.targets.copy_(torch.from_numpy(running))
        return result


@functools.lru_cache
def _products(group: str) -> np.ndarray:
    """`products[g, h]` is the number of `g ∘ h`; int64 `[elements, elements]`."""
    if group in ("parity", "z60"):
        order = 2 if group == "parity" else 60
        return np.add.outer(np.arange(order), np.arange(order)) % order
    n_objects = int(group[1])
    elements = np.array(list(itertools.permutations(range(n_objects))))
    if group[0] == "a":
        signs = np.linalg.det(np.eye(n_objects)[elements])
        elements = elements[signs > 0]
    places = n_objects ** np.arange(n_objects)[::-1]
    codes = elements @ places  # rising, as elements are in lexicographic order
    return np.searchsorted(codes, elements[:, elements] @ places)
