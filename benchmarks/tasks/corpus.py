"""Real text that every machine has: the source of Python's standard library, or a folder of the user's own files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Split

HELD_OUT_SHARE = 0.1  # of the bytes, for validation and for evaluation each
MAX_BYTES = 32 * 2**20  # more text than this is not used
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}  # test suites are not always installed


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Documents end to end. data: uint8 `[bytes]`, or tokens of another `unit`. sizes: of each document, int64
    `[documents]`."""

    data: np.ndarray
    sizes: np.ndarray
    source: str
    unit: str = "bytes"

    def windows(self, rng: np.random.Generator, count: int, length: int, *, across: bool = False) -> np.ndarray:
        """`count` contiguous windows, `[count, length]` like `data`, every start equally likely.

        across: let a window run over the ends of documents. Raises `ValueError` if no text is that long.
        """
        starts = self._starts(rng, count, length, across)
        return np.lib.stride_tricks.sliding_window_view(self.data, length)[starts]

    def packed(self, rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` windows `[count, length]` over the ends of documents, and where in them documents start, bool.

        Every start is equally likely, so that short documents count by their length; the first and the last document of
        a window may be cut. Raises `ValueError` if there is less text than that.
        """
        starts = self._starts(rng, count, length, across=True)
        windows = np.lib.stride_tricks.sliding_window_view(self.data, length)[starts]
        places = starts[:, None] + np.arange(length)
        ends = np.cumsum(self.sizes)
        begins = places == (ends - self.sizes)[np.searchsorted(ends, places, side="right")]
        begins[:, 0] = True
        return windows, begins

    def _starts(self, rng: np.random.Generator, count: int, length: int, across: bool) -> np.ndarray:
        """Where `count` windows start."""
        sizes = self.data.size * np.ones(1, dtype=np.int64) if across else self.sizes
        ends = np.cumsum(np.maximum(sizes - length + 1, 0))  # the windows there are, document by document
        if ends.size == 0 or ends[-1] == 0:
            longest = int(sizes.max(initial=0))
            raise ValueError(
                f"{self.source}: a window of {length} {self.unit} is asked for, but the longest is {longest}"
            )
        picks = rng.integers(ends[-1], size=count)
        documents = np.searchsorted(ends, picks, side="right")
        first_windows = ends - np.maximum(sizes - length + 1, 0)
        first_bytes = np.cumsum(sizes) - sizes
        return first_bytes[documents] + picks - first_windows[documents]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text for training and, from other files, for validation and evaluation. sha256: over all of it, to tell corpora
    apart."""

    train: Text
    validation: Text
    eval: Text
    sha256: str

    def split(self, split: Split) -> Text:
        return getattr(self, split)

    def describe(self) -> dict[str, Any]:
        """What a report should say of the text (JSON-able)."""
        return {
            "source": self.train.source,
            "train_bytes": int(self.train.data.size),
            "eval_bytes": int(self.eval.data.size),
            "sha256": self.sha256,
        }


@functools.lru_cache(maxsize=4)
def load_corpus(folder: str | None = None) -> Corpus:
    """Read the text files under `folder`, or without one the source files of Python's standard library.

    Files are split by the SHA-256 of their content: in that order the first tenth of the bytes (one file at least) is
    for evaluation, the next for validation, the rest for training. Equal files count once. Of more than `MAX_BYTES`, a
    part is taken that the hashes of the paths decide.
    Raises `ValueError` if the folder is missing or holds fewer than three different text files.
    """
    if folder is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        source, paths = "Python's standard library", _library_files(root)
    else:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise ValueError(f"text_folder {folder!r} is not a folder; name one that holds text files")
        source, paths = f"text_folder {folder!r}", _visible_files(root)
    ordered = sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    documents = {hashlib.sha256(content).digest(): content for content in _texts(ordered)}
    if len(documents) < 3:
        raise ValueError(
            f"{source} holds {len(documents)} different text files; at least three are needed, "
            "one to train on, one for validation and one to evaluate on"
        )
    return _split(source, [documents[digest] for digest in sorted(documents)])


def _library_files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*.py") if not _NOT_LIBRARY & set(path.relative_to(root).parts))


def _visible_files(root: Path) -> Iterator[Path]:
    return (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))


def _texts(paths: list[Path]) -> Iterator[bytes]:
    """Contents of those that are text (regular, not empty, without a zero byte), until there is enough of it."""
    left = MAX_BYTES
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(left)
            if content and b"\0" not in content:
                yield content
                left -= len(content)
        if left <= 0:
            return


def held_out(sizes: list[int]) -> tuple[int, int]:
    """How many documents, the first ones, are for evaluation, and where those for validation after them end.

    sizes: of three documents at least, so that there is one of each and one left.
    """
    ends = np.cumsum(sizes)
    first = min(int(np.searchsorted(ends, HELD_OUT_SHARE * ends[-1])) + 1, len(sizes) - 2)
    second = min(max(int(np.searchsorted(ends, 2 * HELD_OUT_SHARE * ends[-1])), first) + 1, len(sizes) - 1)
    return first, second


def _split(source: str, documents: list[bytes]) -> Corpus:
    first, second = held_out([len(document) for document in documents])
    digest = hashlib.sha256(b"".join(documents)).hexdigest()
    return Corpus(
        train=_text(source, documents[second:]),
        validation=_text(source, documents[first:second]),
        eval=_text(source, documents[:first]),
        sha256=digest,
    )


def _text(source: str, documents: list[bytes]) -> Text:
    sizes = np.array([len(document) for document in documents], dtype=np.int64)
    return Text(np.frombuffer(b"".join(documents), dtype=np.uint8), sizes, source)
