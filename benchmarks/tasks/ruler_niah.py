"""RULER's eight needles in a haystack."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from ...mixers.limits import Size
from . import draws
from .base import Batch, Split
from .corpus import load_corpus
from .ruler_bytes import (
    UUID_WIDTH,
    WHITESPACE,
    WORD_WIDTH,
    Phrase,
    RulerTask,
    draw_numbers,
    draw_pairs_of_words,
    draw_uuids,
    insertion_points,
    merge,
    number_chance,
    pad_front,
    scored,
    starts_within,
    uuid_chance,
)

NOISE = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
NUMBER_WIDTH = 7
WIDTHS = {"words": 2 * WORD_WIDTH + 1, "numbers": NUMBER_WIDTH, "uuids": UUID_WIDTH}

Variant = Literal[
    "single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery"
]
# haystack, keys, values; as in the published configuration
_SETTINGS: dict[Variant, tuple[str, str, str]] = {
    "single_1": ("noise", "words", "numbers"),
    "single_2": ("essay", "words", "numbers"),
    "single_3": ("essay", "words", "uuids"),
    "multikey_1": ("essay", "words", "numbers"),
    "multikey_2": ("needles", "words", "numbers"),
    "multikey_3": ("needles", "uuids", "uuids"),
    "multivalue": ("essay", "words", "numbers"),
    "multiquery": ("essay", "words", "numbers"),
}
_SEVERAL: tuple[Variant, ...] = ("multikey_1", "multivalue", "multiquery")  # those with a number of needles


class RulerNiahTask(RulerTask):
    """Needles in a haystack as in RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3 and table 5).

    Needles `One of the special magic numbers for KEY is: VALUE.` are hidden in a haystack, then values are asked for.

    variant: `single_1` one needle in a repeated sentence, `single_2` in text, `single_3` in text with a UUID as value;
    `multikey_1` several keys, one asked; `multikey_2` a haystack of needles, one asked, `multikey_3` the same of
    UUIDs; `multivalue` several values of one key, all asked; `multiquery` several keys, all asked.
    n_needles: of `multikey_1`, `multivalue` and `multiquery`, 4 in the paper; the others have one, beside those that
    are their haystack. text_folder: a folder of text files for the haystack of text; without it, the source of
    Python's standard library. wording: see `RulerTask`.

    Unlike the paper: ids are bytes; text is the local corpus, not Paul Graham's essays; keys are two invented words,
    not an adjective and a noun, and always distinct; needles go in after white space or line ends of text, at
    depths not rounded to fortieths, for evaluation dealt over the quarters; values of `multivalue` are expected in the
    order they stood in, of `multiquery` in the order of the question; haystacks are cut to the length, or filled
    with line breaks where they are made of needles.
    """

    task: Literal["ruler_niah"] = "ruler_niah"
    variant: Variant = "single_1"
    n_needles: Size | None = None
    text_folder: str | None = None

    @model_validator(mode="after")
    def _check(self) -> RulerNiahTask:
        if self.variant not in _SEVERAL and self.n_needles not in (None, 1):
            raise ValueError(
                f"n_needles={self.n_needles} is not for {self.variant}, which has one; take one of "
                f"{', '.join(_SEVERAL)}"
            )
        return self

    @property
    def chance(self) -> float:
        return uuid_chance() if self._settings[2] == "uuids" else number_chance(NUMBER_WIDTH)

    @property
    def min_length(self) -> int:
        return self._opening.width + self._count * self._needle.width + self._question.width

    @property
    def load(self) -> int | None:
        """Needles; None where the haystack is made of them, and their number depends on the length."""
        return None if self._settings[0] == "needles" else self._count

    def with_load(self, load: int) -> RulerNiahTask:
        if self.load is None:
            raise ValueError(f"{self.variant} has no load that could be {load}: its haystack is made of needles")
        return RulerNiahTask.model_validate({**self.model_dump(), "n_needles": load})

    def context_length(self, length: int) -> int:
        return length - self._question.width

    def describe_text(self) -> dict[str, Any] | None:
        return load_corpus(self.text_folder).describe() if self._settings[0] == "essay" else None

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        count, needle, opening, question = self._count, self._needle, self._opening, self._question
        context = self.context_length(length)
        hay_width = context - opening.width - count * needle.width
        hidden = hay_width // needle.width if self._settings[0] == "needles" else 0
        keys, values = self._draw_pairs(rng, batch, count + hidden)
        needles = needle.write(batch, count + hidden, key=keys[:, :, None], value=values[:, :, None])

        hay = self._hay(rng, split, needles[:, count:], hay_width)
        after = WHITESPACE if self._settings[0] == "essay" else b"\n"
        points = np.sort(insertion_points(hay, draws.depths(rng, split, batch, count), after), axis=1)
        starts = starts_within(points, np.full(count, needle.width))
        asked = self._draw_asked(rng, batch)[..., None]
        wanted = np.take_along_axis(values, asked, axis=1)
        queries = np.take_along_axis(keys, asked[:, : self._queries], axis=1)
        n_mentions = len(question.starts["key"]) // self._queries
        tokens = np.concatenate(
            [
                opening.write(batch),
                merge(hay, [(starts, needles[:, :count])]),
                question.write(batch, key=np.tile(queries, (1, n_mentions, 1)), value=wanted),
            ],
            axis=1,
        )
        found = opening.width + np.take_along_axis(starts, asked[..., 0], axis=1) + needle.starts["value"]
        return scored(tokens, context + question.starts["value"], WIDTHS[self._settings[2]], found, context)

    @property
    def _settings(self) -> tuple[str, str, str]:
        return _SETTINGS[self.variant]

    @property
    def _count(self) -> int:
        return self.n_needles or (4 if self.variant in _SEVERAL else 1)

    @property
    def _queries(self) -> int:
        return self._count if self.variant == "multiquery" else 1

    @property
    def _answers(self) -> int:
        return self._count if self.variant in ("multivalue", "multiquery") else 1

    @property
    def _end(self) -> str:
        return " " if self._settings[0] == "essay" else "\n"

    @property
    def _needle(self) -> Phrase:
        _, keys, values = self._settings
        paper = f"One of the special magic {values} for {{key}} is: {{value}}.{self._end}"
        template = paper if self.wording == "paper" else f"{{key}} is {{value}}.{self._end}"
        return Phrase(template, key=WIDTHS[keys], value=WIDTHS[values])

    @property
    def _opening(self) -> Phrase:
        kind = self._settings[2]
        first = f"Some special magic {kind} are" if self._answers > 1 else f"A special magic {kind[:-1]} is"
        kind = kind if self._answers > 1 else kind[:-1]
        again = f"Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
        return Phrase(f"{first} hidden within the following text. {again}" if self.wording == "paper" else "")

    @property
    def _question(self) -> Phrase:
        _, keys, values = self._settings
        query = ", ".join(["{key}"] * (self._queries - 1) + ["and {key}" if self._queries > 1 else "{key}"])
        answers = ", ".join(["{value}"] * self._answers)
        paper = (
            f"\nWhat are all the special magic {values} for {query} mentioned in the provided text? "
            f"The special magic {values} for {query} mentioned in the provided text are {answers}"
        )
        if self._answers == 1:
            paper = paper.replace("are all", "is").replace("are", "is").replace(values, values[:-1])
        short = f"\n{', '.join(['{key}'] * self._queries)}? {answers}"
        return Phrase(paper if self.wording == "paper" else short, key=WIDTHS[keys], value=WIDTHS[values])

    def _draw_pairs(self, rng: np.random.Generator, batch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of needles, uint8 `[batch, count, width]`."""
        _, kind, values = self._settings
        n_keys = 1 if self.variant == "multivalue" else count
        keys = draw_uuids(rng, batch, n_keys) if kind == "uuids" else draw_pairs_of_words(rng, batch, n_keys)
        drawn = draw_uuids(rng, batch, count) if values == "uuids" else draw_numbers(rng, batch, count, NUMBER_WIDTH)
        return np.broadcast_to(keys, (batch, count, keys.shape[-1])), drawn

    def _draw_asked(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Which needles are asked for, in order, `[batch, answers]`."""
        everything = np.tile(np.arange(self._count), (batch, 1))
        return everything if self.variant == "multivalue" else rng.permuted(everything, axis=1)[:, : self._answers]

    def _hay(self, rng: np.random.Generator, split: Split, needles: np.ndarray, width: int) -> np.ndarray:
        """What the needles are hidden in, uint8 `[batch, width]`; `needles [batch, hidden, bytes]` if made of them."""
        kind, batch = self._settings[0], len(needles)
        if kind == "needles":
            return pad_front(needles.reshape(batch, -1), width)
        if kind == "essay":
            return load_corpus(self.text_folder).split(split).windows(rng, batch, width, across=True)
        return noise(batch, width)


def noise(batch: int, width: int) -> np.ndarray:
    """The repeated sentences, cut to `[batch, width]`."""
    repeated = np.resize(np.frombuffer(NOISE, dtype=np.uint8), width)
    return np.broadcast_to(repeated, (batch, width))
