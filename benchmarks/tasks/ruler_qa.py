"""RULER's question answering, from a local file of questions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator

from .base import Batch, Split
from .corpus import held_out
from .ruler_bytes import RulerTask, scored

MAX_QUESTION = 512  # bytes of a question with its answer; longer ones are left out
_LINE = '{"question": "Who?", "contexts": ["A document."], "answer": "She"}'
_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
)
_GIVEN = "The following are given documents.\n\n"


class Question(BaseModel):
    """A line of a file of questions. contexts (or context): the documents it is about. answer: what is expected; of a
    list, the first."""

    question: str = Field(min_length=1)
    contexts: tuple[str, ...] = Field(min_length=1, validation_alias=AliasChoices("contexts", "context"))
    answer: str = Field(min_length=1)

    @field_validator("contexts", mode="before")
    @classmethod
    def _as_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("answer", mode="before")
    @classmethod
    def _as_one(cls, given: Any) -> Any:
        return given[0] if isinstance(given, list) and given else given


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionPool:
    """Questions of a split and all documents of these questions, as bytes, none twice. own: for each question, which of
    the documents are its own."""

    questions: list[bytes]
    answers: list[bytes]
    documents: list[bytes]
    own: list[np.ndarray]

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each document."""
        return np.array([len(document) for document in self.documents])

    @functools.cached_property
    def own_counts(self) -> np.ndarray:
        """How many documents a question has."""
        return np.array([len(own) for own in self.own])

    @functools.cached_property
    def own_sizes(self) -> np.ndarray:
        """Bytes of the documents of a question."""
        return np.array([self.sizes[own].sum() for own in self.own])


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionFile:
    """What `load_questions` reads. longest: bytes of the longest question with its answer."""

    train: QuestionPool
    validation: QuestionPool
    eval: QuestionPool
    longest: int
    sha256: str

    def split(self, split: Split) -> QuestionPool:
        return getattr(self, split)


class RulerQaTask(RulerTask):
    """Question answering as in RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3): documents, then a question.

    The documents of the question stand in random order among documents of other questions, as many as the length
    allows, again and again if there are too few; the first answer is expected.

    qa_file: a file with one JSON object a line: `question`, `contexts` (a list of documents) or `context` (one), and
    `answer` (of a list, the first). The paper's `qa_1` is SQuAD, where a question has one paragraph, and `qa_2` is
    HotpotQA, where it has ten; neither comes with this package, and no other data takes their place.
    wording: see `RulerTask`; `short` has documents and the question alone.

    Unlike the paper: ids are bytes; one answer counts, not any of several; other documents are not taken from the same
    article first; questions of more than 512 bytes are left out, and those that do not fit into the length are not
    drawn; what is left of the length is filled with line breaks before the documents, and before the question.
    Questions are split by the hash of their documents; a document that several questions list beside different others
    may be in two splits.
    """

    task: Literal["ruler_qa"] = "ruler_qa"
    qa_file: str | None = None

    @property
    def chance(self) -> float:
        """Of guessing the byte that most often follows the one before it in the answers of the training split."""
        return _bigram_chance(self._file)

    @property
    def min_length(self) -> int:
        pools = [self._file.split(split) for split in ("train", "validation", "eval")]
        return max(int(self._needed(pool).min()) for pool in pools)

    def context_length(self, length: int) -> int:
        return length - self._question_width

    def describe_text(self) -> dict[str, Any]:
        return {
            "source": f"qa_file {self.qa_file!r}",
            "train_bytes": sum(map(len, self._file.train.documents)),
            "eval_bytes": sum(map(len, self._file.eval.documents)),
            "sha256": self._file.sha256,
        }

    def sample(self, rng: np.random.Generator, split: Split, batch: int, length: int) -> Batch:
        self.check_length(length)
        pool = self._file.split(split)
        possible = np.flatnonzero(self._needed(pool) <= length)
        drawn = possible[rng.integers(len(possible), size=batch)]
        return Batch.cat([self._one(rng, pool, int(question), length) for question in drawn])

    @property
    def _file(self) -> QuestionFile:
        if self.qa_file is None:
            raise ValueError(
                f"ruler_qa needs qa_file, a file with lines such as {_LINE}; SQuAD and HotpotQA do not come with this "
                "package: convert your copy to such lines"
            )
        return load_questions(self.qa_file)

    @property
    def _opening(self) -> bytes:
        return (_INSTRUCTION + _GIVEN).encode() if self.wording == "paper" else b""

    @property
    def _question_width(self) -> int:
        return len(self._ask(b"", b"")) + self._file.longest

    def _ask(self, question: bytes, answer: bytes) -> bytes:
        if self.wording == "short":
            return b"\n" + question + b" " + answer
        return f"\n\n{_INSTRUCTION}Question: ".encode() + question + b" Answer: " + answer

    def _heading(self, number: int) -> bytes:
        """What stands before document `number`, counted from 0."""
        between = b"\n\n" if number else b""
        return between + (f"Document {number + 1}:\n".encode() if self.wording == "paper" else b"")

    def _heading_sizes(self, count: int) -> np.ndarray:
        """Bytes of the first `count` headings."""
        numbers = np.arange(1, count + 1)
        digits = 1 + np.searchsorted(10 ** np.arange(1, 12), numbers, side="right")
        return 2 * (numbers > 1) + (digits + len("Document :\n") if self.wording == "paper" else 0)

    def _needed(self, pool: QuestionPool) -> np.ndarray:
        """Tokens of the shortest sequence with each of the questions."""
        headings = np.cumsum(self._heading_sizes(int(pool.own_counts.max())))[pool.own_counts - 1]
        return len(self._opening) + headings + pool.own_sizes + self._question_width

    def _one(self, rng: np.random.Generator, pool: QuestionPool, question: int, length: int) -> Batch:
        context, own, answer = self.context_length(length), pool.own[question], pool.answers[question]
        chosen = self._choose(rng, pool, own, context - len(self._opening))
        text = bytearray(self._opening)
        places: dict[int, int] = {}
        for number, document in enumerate(chosen):
            text += self._heading(number)
            places[document] = len(text)
            text += pool.documents[document]
        padding = context - len(text)
        asked = self._ask(pool.questions[question], answer)
        tail = asked.rjust(length - context, b"\n")
        tokens = np.frombuffer(b"\n" * padding + bytes(text) + tail, dtype=np.uint8)[None]
        within = [(places[i], pool.documents[i].find(answer)) for i in own.tolist()]
        found = next((place + at for place, at in within if at >= 0), within[0][0])
        starts = np.array([length - len(answer)])
        return scored(tokens, starts, len(answer), np.array([[padding + found]]), context)

    def _choose(self, rng: np.random.Generator, pool: QuestionPool, own: np.ndarray, room: int) -> list[int]:
        """Documents of the question and others, in random order, that fill `room` bytes as far as they can."""
        others = np.setdiff1d(np.arange(len(pool.documents)), own, assume_unique=True)
        if others.size:
            rounds = room // int(pool.sizes[others].sum()) + 1
            others = np.concatenate([rng.permutation(others) for _ in range(rounds)])
        chosen = np.concatenate([own, others])
        used = np.cumsum(pool.sizes[chosen] + self._heading_sizes(len(chosen)))
        return rng.permutation(chosen[: np.searchsorted(used, room, side="right")]).tolist()


@functools.lru_cache(maxsize=4)
def load_questions(path: str) -> QuestionFile:
    """Read a file of questions, see `RulerQaTask`, and split it by the SHA-256 of the questions' documents.

    In the order of these hashes the first tenth of the questions is for evaluation, the next for validation, the rest
    for training; questions about the same documents stay together, and one of each split there is at least.
    Raises `ValueError` if the file is missing, a line is not as it should be, or there are too few questions.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"qa_file {path!r} is not a file; name one with lines such as {_LINE}")
    content = file.read_bytes()
    lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    asked = [_read(path, number, line) for number, line in lines]
    kept = [q for q in asked if len(q.question.encode()) + len(q.answer.encode()) <= MAX_QUESTION]
    groups: dict[bytes, list[Question]] = {}
    for question in kept:
        groups.setdefault(hashlib.sha256("\0".join(sorted(question.contexts)).encode()).digest(), []).append(question)
    if len(groups) < 3:
        raise ValueError(
            f"qa_file {path!r} holds questions of at most {MAX_QUESTION} bytes about {len(groups)} different sets of "
            "documents; at least three are needed, one to train on, one for validation and one to evaluate on"
        )
    ordered = [groups[digest] for digest in sorted(groups)]
    first, second = held_out([len(group) for group in ordered])
    return QuestionFile(
        train=_pool(ordered[second:]),
        validation=_pool(ordered[first:second]),
        eval=_pool(ordered[:first]),
        longest=max(len(q.question.encode()) + len(q.answer.encode()) for q in kept),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _read(path: str, number: int, line: bytes) -> Question:
    try:
        return Question.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the line"
        raise ValueError(
            f"qa_file {path!r}, line {number}: {where}: {problem['msg']}; a line should be such as {_LINE}"
        ) from error


def _pool(groups: list[list[Question]]) -> QuestionPool:
    questions = [question for group in groups for question in group]
    ids: dict[bytes, int] = {}
    own = [[ids.setdefault(text.encode(), len(ids)) for text in q.contexts] for q in questions]
    return QuestionPool(
        [q.question.encode() for q in questions],
        [q.answer.encode() for q in questions],
        list(ids),
        [np.array(list(dict.fromkeys(of_one))) for of_one in own],
    )


@functools.lru_cache(maxsize=4)
def _bigram_chance(file: QuestionFile) -> float:
    counts = np.zeros((256, 256), dtype=np.int64)
    for answer in file.train.answers:
        np.add.at(counts, _bigrams(answer), 1)
    guesses = counts.argmax(axis=1)
    right = [guesses[before] == after for before, after in map(_bigrams, file.eval.answers)]
    return float(np.concatenate(right).mean())


def _bigrams(answer: bytes) -> tuple[np.ndarray, np.ndarray]:
    signs = np.frombuffer(b" " + answer, dtype=np.uint8)
    return signs[:-1], signs[1:]
