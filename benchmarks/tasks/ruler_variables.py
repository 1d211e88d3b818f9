"""RULER's variable tracking."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ...mixers.limits import Size
from . import draws
from .base import Batch, Split
from .corpus import load_corpus
from .ruler_bytes import (
    DIGITS,
    UPPERCASE,
    WHITESPACE,
    Phrase,
    RulerTask,
    draw_distinct,
    insertion_points,
    merge,
    scored,
    spell,
    starts_within,
)
from .ruler_niah import noise

NAME_WIDTH = VALUE_WIDTH = 5
_N_NAMES, _N_VALUES = 26**NAME_WIDTH, 9 * 10 ** (VALUE_WIDTH - 1)


class RulerVariablesTask(RulerTask):
    """Variable tracking as in RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3): follow chains of assignments.

    Each chain is `VAR AAAAA = 12345`, `VAR BBBBB = VAR AAAAA` and so on, its statements in this order at random places
    of a haystack, chains among one another. At the end all variables of one chain are asked for by its value.

    n_chains; n_hops: assignments of a chain after its first, so that it has one variable more; 1 and 4 in the paper.
    haystack: `noise`, a repeated sentence as in the paper, or `essay`, text. text_folder: see `RulerNiahTask`.
    wording: see `RulerTask`. The load counts variables, of all chains.

    Unlike the paper: ids are bytes; no example is given before the question; names and values are distinct; text is the
    local corpus; the answer lists the variables in the order they were assigned, and the haystack is cut to the length.
    """

    task: Literal["ruler_variables"] = "ruler_variables"
    n_chains: Size = 1
    n_hops: Size = 4
    haystack: Literal["noise", "essay"] = "noise"
    text_folder: str | None = None

    @property
    def chance(self) -> float:
        return 1 / 26

    @property
    def min_length(self) -> int:
        chain = self._first.width + self.n_hops * self._hop.width
        return self._opening.width + self.n_chains * chain + self._question.width

    @property
    def load(self) -> int:
        return self.n_chains * (self.n_hops + 1)

    def with_load(self, load: int) -> RulerVariablesTask:
        if load < 1 or load % (self.n_hops + 1):
            raise ValueError(
                f"load={load} cannot be: it counts variables, of which a chain of n_hops={self.n_hops} has "
                f"{self.n_hops + 1}; take a multiple of {self.n_hops + 1}"
            )
        return RulerVariablesTask.model_validate({**self.model_dump(), "n_chains": load // (self.n_hops + 1)})

    def context_length(self, length: int) -> int:
        return length - self._question.width

    def describe_text(self) -> dict[str, Any] | None:
        return load_corpus(self.text_folder).describe() if self.haystack == "essay" else None

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        opening, question, chains, hops = self._opening, self._question, self.n_chains, self.n_hops
        context = self.context_length(length)
        names = spell(draw_distinct(rng, batch, _N_NAMES, self.load), UPPERCASE, NAME_WIDTH)
        names = names.reshape(batch, chains, hops + 1, NAME_WIDTH)
        lowest = 10 ** (VALUE_WIDTH - 1)
        values = spell(lowest + draw_distinct(rng, batch, _N_VALUES, chains), DIGITS, VALUE_WIDTH)

        hay_width = length - self.min_length
        hay = noise(batch, hay_width) if self.haystack == "noise" else self._text(rng, split, batch, hay_width)
        after = b"\n" if self.haystack == "noise" else WHITESPACE
        points = insertion_points(hay, draws.depths(rng, split, batch, self.load), after)
        points = np.sort(points.reshape(batch, chains, hops + 1), axis=2).reshape(batch, -1)
        widths = np.tile([self._first.width, *[self._hop.width] * hops], chains)
        starts = starts_within(points, widths).reshape(batch, chains, hops + 1)
        firsts = self._first.write(batch, chains, name=names[:, :, :1], value=values[:, :, None])
        others = self._hop.write(batch, chains, hops, name=names[:, :, 1:, None], other=names[:, :, :-1, None])
        pieces = [
            (starts[:, :, 0], firsts),
            (starts[:, :, 1:].reshape(batch, -1), others.reshape(batch, chains * hops, -1)),
        ]
        asked = question.write(batch, value=values[:, :1], name=names[:, 0])  # chains are alike: the first is asked for
        tokens = np.concatenate([opening.write(batch), merge(hay, pieces), asked], axis=1)
        found = opening.width + starts[:, 0] + self._first.starts["name"]
        return scored(tokens, context + question.starts["name"], NAME_WIDTH, found, context)

    @property
    def _end(self) -> str:
        return "\n" if self.haystack == "noise" else ". "

    @property
    def _first(self) -> Phrase:
        return Phrase(f"VAR {{name}} = {{value}}{self._end}", name=NAME_WIDTH, value=VALUE_WIDTH)

    @property
    def _hop(self) -> Phrase:
        return Phrase(f"VAR {{name}} = VAR {{other}}{self._end}", name=NAME_WIDTH, other=NAME_WIDTH)

    @property
    def _opening(self) -> Phrase:
        paper = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        return Phrase(paper if self.wording == "paper" else "")

    @property
    def _question(self) -> Phrase:
        n, names = self.n_hops + 1, " ".join(["{name}"] * (self.n_hops + 1))
        paper = (
            "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According "
            f"to the chain(s) of variable assignment in the text above, {n} variables are assigned the value "
            f"{{value}}, they are: {names}"
        )
        short = f"\n{{value}}? {names}"
        return Phrase(paper if self.wording == "paper" else short, value=VALUE_WIDTH, name=NAME_WIDTH)

    def _text(self, rng: np.random.Generator, split: Split, batch: int, width: int) -> np.ndarray:
        return load_corpus(self.text_folder).split(split).windows(rng, batch, width, across=True)
