"""What RULER's tasks are written with: phrases of fixed width, random words, places in a text, and what is scored."""

from __future__ import annotations

from string import Formatter, ascii_lowercase, ascii_uppercase, digits
from typing import Literal

import numpy as np
import torch

from .base import Batch, Task

WHITESPACE = b" \n\t\r"


def _signs(signs: list[str]) -> np.ndarray:
    """Strings of one width as uint8 `[n, width]`."""
    return np.array([list(sign.encode()) for sign in signs], dtype=np.uint8)


DIGITS = _signs(list(digits))
HEXADECIMAL = _signs(list("0123456789abcdef"))
LOWERCASE = _signs(list(ascii_lowercase))
UPPERCASE = _signs(list(ascii_uppercase))
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = _signs([consonant + vowel for consonant in CONSONANTS for vowel in VOWELS])
WORD_SYLLABLES, WORD_WIDTH = 3, 6
N_WORDS = len(SYLLABLES) ** WORD_SYLLABLES
WORD_CHANCE = (1 / len(CONSONANTS) + 1 / len(VOWELS)) / 2  # of a right guess of one of its letters
UUID_WIDTH = 36
_HYPHENS = (8, 13, 18, 23)


class RulerTask(Task):
    """A task of RULER (Hsieh et al. 2024, arXiv 2404.06654) as bytes; its answers come last and are scored throughout.

    wording: `paper` uses the sentences of the published generator; `short` says the same in fewer bytes, for small
    models and short sequences.
    """

    wording: Literal["paper", "short"] = "paper"

    @property
    def vocab_size(self) -> int:
        return 256


class Phrase:
    """A text with gaps of fixed width, to be written into many rows at once.

    template: `{name}` marks a gap. widths: bytes of the gaps, by name. `starts` says where the gaps of each name are.
    """

    def __init__(self, template: str, **widths: int) -> None:
        content = bytearray()
        starts: dict[str, list[int]] = {name: [] for name in widths}
        for literal, name, _, _ in Formatter().parse(template):
            content += literal.encode()
            if name is not None:
                starts[name].append(len(content))
                content += bytes(widths[name])
        self.starts = {name: np.array(places, dtype=np.int64) for name, places in starts.items()}
        self._widths = widths
        self._bytes = np.frombuffer(bytes(content), dtype=np.uint8)

    @property
    def width(self) -> int:
        return self._bytes.size

    def write(self, *shape: int, **gaps: np.ndarray) -> np.ndarray:
        """Bytes, uint8 `[*shape, width]`. gaps: by name, uint8 `[*shape, number of gaps, width of the gap]`."""
        written = np.empty((*shape, self.width), dtype=np.uint8)
        written[...] = self._bytes
        for name, starts in self.starts.items():
            written[..., starts[:, None] + np.arange(self._widths[name])] = gaps[name]
        return written


def spell(numbers: np.ndarray, signs: np.ndarray, length: int) -> np.ndarray:
    """`numbers [...]` written with `length` of the `signs [n, width]`, the first most significant, `[..., bytes]`."""
    places = numbers[..., None] // len(signs) ** np.arange(length - 1, -1, -1) % len(signs)
    return signs[places].reshape(*numbers.shape, length * signs.shape[1])


def draw_distinct(rng: np.random.Generator, batch: int, n: int, count: int) -> np.ndarray:
    """`count` different numbers of `0..n - 1` in each row, in random order, int64 `[batch, count]`."""
    return np.stack([rng.choice(n, count, replace=False) for _ in range(batch)])


def draw_pairs_of_words(rng: np.random.Generator, batch: int, count: int) -> np.ndarray:
    """Different keys such as `badiku-lomera` in each row, uint8 `[batch, count, 2 * WORD_WIDTH + 1]`."""
    drawn = draw_distinct(rng, batch, N_WORDS**2, count)
    first, second = (spell(part, SYLLABLES, WORD_SYLLABLES) for part in (drawn // N_WORDS, drawn % N_WORDS))
    return np.concatenate([first, np.full((batch, count, 1), ord("-"), dtype=np.uint8), second], axis=-1)


def draw_numbers(rng: np.random.Generator, batch: int, count: int, length: int) -> np.ndarray:
    """Numbers of `length` digits, the first not 0, uint8 `[batch, count, length]`."""
    return spell(rng.integers(10 ** (length - 1), 10**length, size=(batch, count)), DIGITS, length)


def draw_uuids(rng: np.random.Generator, batch: int, count: int) -> np.ndarray:
    """Random UUIDs (version 4), uint8 `[batch, count, 36]`; that two are equal is as good as impossible."""
    drawn = rng.integers(16, size=(batch, count, 32))
    drawn[..., 12], drawn[..., 16] = 4, 8 + drawn[..., 16] % 4
    written = np.full((batch, count, UUID_WIDTH), ord("-"), dtype=np.uint8)
    written[..., [i for i in range(UUID_WIDTH) if i not in _HYPHENS]] = HEXADECIMAL[drawn, 0]
    return written


def insertion_points(text: np.ndarray, depths: np.ndarray, after: bytes) -> np.ndarray:
    """Where to insert into `text [batch, n]`: at its start or after one of the bytes `after`, int64 like `depths`.

    Each is the last such place before the wished depth.
    """
    n = text.shape[1]
    may = np.isin(text, np.frombuffer(after, dtype=np.uint8))
    places = np.zeros((len(text), n + 1), dtype=np.int64)
    places[:, 1:] = np.maximum.accumulate(np.where(may, np.arange(1, n + 1), 0), axis=1)
    return np.take_along_axis(places, np.floor(depths * (n + 1)).astype(np.int64), axis=1)


def starts_within(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Where pieces of `widths [pieces]` start once all of them are inserted at `points [batch, pieces]` of a text.

    Pieces with the same point keep their order.
    """
    order = np.argsort(points, axis=1, kind="stable")
    sorted_widths = widths[order]
    starts = np.empty_like(points)
    before = np.cumsum(sorted_widths, axis=1) - sorted_widths
    np.put_along_axis(starts, order, np.take_along_axis(points, order, axis=1) + before, axis=1)
    return starts


def merge(text: np.ndarray, pieces: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`text [batch, n]` with pieces in it. pieces: where they start `[batch, count]`, and what they are
    `[batch, count, width]`."""
    rows = np.arange(len(text))[:, None, None]
    places = [starts[..., None] + np.arange(content.shape[-1]) for starts, content in pieces]
    merged = np.empty((len(text), text.shape[1] + sum(content[0].size for _, content in pieces)), dtype=np.uint8)
    is_text = np.ones(merged.shape, dtype=bool)
    for place, (_, content) in zip(places, pieces, strict=True):
        merged[rows, place] = content
        is_text[rows, place] = False
    merged[is_text] = text.reshape(-1)
    return merged


def pad_front(rows: np.ndarray, width: int) -> np.ndarray:
    """`rows [batch, n]` with line breaks before them, `[batch, width]`."""
    return np.pad(rows, ((0, 0), (width - rows.shape[1], 0)), constant_values=ord("\n"))


def scored(
    tokens: np.ndarray, answers: np.ndarray, width: int, found: np.ndarray, context: int, *, one_place: bool = True
) -> Batch:
    """`tokens [batch, time]` with every byte of the answers as a target.

    answers: where they start, `[count]`. width: bytes of each. found: where they start in the first `context` tokens,
    `[batch, count]`. one_place: they stand there alone; otherwise `found` is the first place of several and there is
    no depth to report.
    """
    batch = Batch.of(tokens)
    places = (answers[:, None] + np.arange(width)).reshape(-1)
    back = torch.from_numpy(np.repeat(answers - 1 - found, width, axis=1))
    batch.targets[:, places - 1] = batch.tokens[:, places]
    batch.distances[:, places - 1] = back
    if one_place:
        depths = np.repeat(found / max(1, context - 1), width, axis=1)
        batch.depths[:, places - 1] = torch.from_numpy(depths.astype(np.float32))
    return batch


def number_chance(length: int) -> float:
    """Share of right guesses of the digits of `draw_numbers`."""
    return (1 / 9 + (length - 1) / 10) / length


def uuid_chance() -> float:
    """Share of right guesses of the signs of `draw_uuids`, of which five are always the same."""
    return (len(_HYPHENS) + 1 + 1 / 4 + 30 / 16) / UUID_WIDTH
