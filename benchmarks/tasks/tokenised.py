"""Text as tokens: read once through a tokenizer, from a folder or a dataset, into files that are mapped into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from .base import Split
from .corpus import HELD_OUT_SHARE, Text, load_corpus

MAX_TOKENS = 2**25  # where a task does not say
FORMAT = 1  # of the files in the cache
SPLITS: tuple[Split, ...] = ("train", "validation", "eval")
_GROUP = 256  # documents given to the tokenizer at once


class TextDataset(BaseModel):
    """A dataset of the package `datasets`, read as a stream.

    name: on the Hugging Face Hub, or a local folder of JSON, text or other files that it can read. config: its
    configuration. split: the part of it that is read; what is trained and evaluated on is split off by the hash of each
    document. column: where the text is. revision: commit, tag or branch on the Hub.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """What makes tokens of text. vocab_size: ids are below that. sha256: of all that it is made of. encode: ids of each
    of many texts."""

    name: str
    vocab_size: int
    sha256: str
    encode: Callable[[list[str]], list[list[int]]]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.min_scalar_type(self.vocab_size - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Tokens of text for training, validation and evaluation. made: how they were made, and how many there are."""

    train: Text
    validation: Text
    eval: Text
    made: dict[str, Any]

    def split(self, split: Split) -> Text:
        return getattr(self, split)

    def describe(self) -> dict[str, Any]:
        """What a report should say of the text (JSON-able). bytes_per_token: of the text for evaluation."""
        counts = self.made["splits"]
        return {
            "source": self.made["source"],
            "tokenizer": self.made["tokenizer"],
            **{f"{split}_{unit}": counts[split][unit] for split in ("train", "eval") for unit in ("bytes", "tokens")},
            "bytes_per_token": counts["eval"]["bytes"] / counts["eval"]["tokens"],
            "sha256": self.made["sha256"],
        }


@dataclasses.dataclass
class _Part:
    """A split that is being written, until a document does not fit any more."""

    file: BinaryIO
    limit: int
    sizes: list[int] = dataclasses.field(default_factory=list)
    tokens: int = 0
    bytes: int = 0
    full: bool = False

    def add(self, ids: np.ndarray, n_bytes: int) -> bool:
        """Whether the document was taken."""
        self.full = self.full or self.tokens + ids.size > self.limit
        if self.full or not ids.size:
            return False
        self.file.write(ids.tobytes())
        self.sizes.append(ids.size)
        self.tokens += ids.size
        self.bytes += n_bytes
        return True


@functools.lru_cache(maxsize=4)
def load_tokens(
    tokenizer: str | None, dataset: TextDataset | None, text_folder: str | None, max_tokens: int
) -> TokenCorpus:
    """The text of `dataset`, or else of `text_folder` (see `load_corpus`), as tokens of `tokenizer`; bytes without one.

    What is made is kept in `cache_folder()`, in a folder named by the hash of how: tokens of each split, document after
    document, sizes of the documents, and `made.json`. Documents of a folder are split as `load_corpus` does, those
    of a dataset by their SHA-256: the lowest tenth of its range is for evaluation, the next for validation, the rest
    for training; equal documents count once. A split has at most its share of `max_tokens` and ends before the first
    document that exceeds it.
    Raises `ValueError` if a package is missing, something cannot be read, or a split is left without text.
    """
    encoder = load_encoder(tokenizer)
    identity: dict[str, Any]
    if dataset is None:
        corpus = load_corpus(text_folder)
        source, identity = corpus.train.source, {"text": corpus.sha256}
    else:
        source = f"dataset {dataset.name!r}"
        identity = {**dataset.model_dump(), "files": _local_files(dataset)}
    request = {"format": FORMAT, "tokenizer": encoder.sha256, "source": identity, "max_tokens": max_tokens}
    name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / name[:32]
    if not (folder / "made.json").is_file():
        documents = _corpus_documents(text_folder) if dataset is None else _dataset_documents(dataset)
        made = {"source": source, "tokenizer": encoder.name, "vocab_size": encoder.vocab_size, "request": request}
        _make(folder, encoder, documents, max_tokens, made)
    return _open(folder, source, encoder.name)


@functools.lru_cache(maxsize=8)
def load_encoder(tokenizer: str | None) -> Encoder:
    """A tokenizer from a file, a folder that has a `tokenizer.json`, or by name from the Hugging Face Hub.

    Without one, tokens are bytes. Nothing is added to a text, and nothing cut off it.
    Raises `ValueError` if there is no such tokenizer, or the package for it is not installed.
    """
    if tokenizer is None:
        return Encoder("bytes", 256, hashlib.sha256(b"bytes").hexdigest(), lambda texts: [[*t.encode()] for t in texts])
    package = _import("tokenizers")
    path = Path(tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        found = (
            package.Tokenizer.from_file(str(path)) if path.is_file() else package.Tokenizer.from_pretrained(tokenizer)
        )
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(
            f"the tokenizer {tokenizer!r} cannot be loaded ({error}); name a tokenizer.json, a folder that has one, or "
            "one on the Hugging Face Hub if that can be reached from here"
        ) from error
    found.no_truncation()
    found.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in found.encode_batch(texts, add_special_tokens=False)]

    vocab_size = 1 + max(found.get_vocab().values())
    return Encoder(tokenizer, vocab_size, hashlib.sha256(found.to_str().encode()).hexdigest(), encode)


def cache_folder() -> Path:
    """Where tokens are kept: `mixerzoo/text` in the user's cache directory."""
    return Path(_import("platformdirs").user_cache_dir("mixerzoo")) / "text"


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"a tokenizer or a dataset needs the package {name}, which is not installed here: pip install -e '.[text]'"
        ) from error


def _corpus_documents(text_folder: str | None) -> Iterator[tuple[Split, str]]:
    corpus = load_corpus(text_folder)
    for split in SPLITS:
        text = corpus.split(split)
        for document in np.split(text.data, np.cumsum(text.sizes)[:-1]):
            yield split, document.tobytes().decode(errors="replace")


def _dataset_documents(dataset: TextDataset) -> Iterator[tuple[Split, str]]:
    seen: set[bytes] = set()
    for text in _dataset_texts(dataset):
        digest = hashlib.sha256(text.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        share = int.from_bytes(digest[:8], "big") / 2**64
        yield "eval" if share < HELD_OUT_SHARE else "validation" if share < 2 * HELD_OUT_SHARE else "train", text


def _dataset_texts(dataset: TextDataset) -> Iterator[str]:
    package = _import("datasets")
    local = Path(dataset.name).expanduser()
    name = str(local) if local.is_dir() else dataset.name
    options = {"split": dataset.split, "streaming": True, "revision": dataset.revision}
    with _explained(dataset):
        rows = iter(package.load_dataset(name, dataset.config, **options))
    while True:
        with _explained(dataset):
            row = next(rows, None)
        if row is None:
            return
        if not isinstance(row.get(dataset.column), str):
            raise ValueError(
                f"dataset {dataset.name!r} has no text in the column {dataset.column!r}; its columns are "
                f"{', '.join(map(repr, row))}"
            )
        yield row[dataset.column].encode(errors="replace").decode()  # without lone surrogates


@contextlib.contextmanager
def _explained(dataset: TextDataset) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the package and its file systems raise
        raise ValueError(
            f"dataset {dataset.name!r} cannot be read ({type(error).__name__}: {error}); see that name, config, split "
            "and revision are right and that the Hugging Face Hub can be reached from here, or name a local folder"
        ) from error


def _local_files(dataset: TextDataset) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of the files of a dataset that is a local folder, to see whether it has changed."""
    root = Path(dataset.name).expanduser()
    if not root.is_dir():
        return None
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(p.relative_to(root).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _make(
    folder: Path, encoder: Encoder, documents: Iterable[tuple[Split, str]], max_tokens: int, made: dict[str, Any]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
        new = Path(scratch) / "text"
        new.mkdir()
        counts, digest = _write(new, encoder, documents, max_tokens)
        empty = [split for split in SPLITS if not counts[split]["documents"]]
        if empty:
            raise ValueError(
                f"{made['source']}: with max_tokens={max_tokens} there is no document for {', '.join(empty)} (a "
                "tenth of the tokens is for validation, another for evaluation); allow more tokens, or take more or "
                "shorter texts"
            )
        made = {**made, "dtype": encoder.dtype.name, "splits": counts, "sha256": digest}
        (new / "made.json").write_text(json.dumps(made, indent=2) + "\n")
        try:
            os.replace(new, folder)
        except OSError:
            if not (folder / "made.json").is_file():  # else another process has made the same in the meantime
                raise


def _write(
    folder: Path, encoder: Encoder, documents: Iterable[tuple[Split, str]], max_tokens: int
) -> tuple[dict[Split, dict[str, int]], str]:
    """Write the tokens; how many documents, tokens and bytes each split has, and the SHA-256 of it all."""
    held_out = int(HELD_OUT_SHARE * max_tokens)
    limits = {"train": max_tokens - 2 * held_out, "validation": held_out, "eval": held_out}
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context((folder / f"{split}.bin").open("wb")) for split in SPLITS}
        parts = {split: _Part(files[split], limits[split]) for split in SPLITS}
        rest = iter(documents)
        while group := list(itertools.islice(rest, _GROUP)):
            for (split, text), ids in zip(group, encoder.encode([text for _, text in group]), strict=True):
                tokens = np.array(ids, dtype=encoder.dtype)
                if parts[split].add(tokens, len(text.encode())):
                    digest.update(split.encode() + tokens.tobytes())
            if all(part.full for part in parts.values()):
                break
    for split, part in parts.items():
        np.save(folder / f"{split}.sizes.npy", np.array(part.sizes, dtype=np.int64))
    counts = {s: {"documents": len(p.sizes), "tokens": p.tokens, "bytes": p.bytes} for s, p in parts.items()}
    return counts, digest.hexdigest()


def _open(folder: Path, source: str, tokenizer: str) -> TokenCorpus:
    """What lies in `folder`, which may have been made under other names of the same source and tokenizer."""
    made = {**json.loads((folder / "made.json").read_text()), "source": source, "tokenizer": tokenizer}

    def text(split: Split) -> Text:
        data = np.memmap(folder / f"{split}.bin", dtype=made["dtype"], mode="r")
        return Text(data, np.load(folder / f"{split}.sizes.npy"), f"{source} by tokenizer {tokenizer!r}", unit="tokens")

    return TokenCorpus(text("train"), text("validation"), text("eval"), made)
