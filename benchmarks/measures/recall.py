"""Recall: how much of what it read does a trained model find again, by length, load, passes and depth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ...mixers.limits import Amount, Count, Size
from ...mixers.memory.fwpkm_inspection import watch_fwpkm
from ...models import LanguageModel, ModelState
from ..doing import Doing, Progress
from ..errors import NotFiniteError
from ..runs import ResultLine
from ..tasks import IGNORE, Batch, NeedleTask, RecallTask, Task
from ..training import autocast
from .base import CallSeconds, part_of
from .entry import Entry, one_decimal
from .sparse_memories import SparseMemories
from .trained import Trained

DEPTH_EDGES = (0.0, 0.25, 0.5, 0.75)  # lower edges of the depth buckets

Memory = Literal["fresh", "persistent"]


class Recall(Trained):
    """Teach a task, then count right answers far beyond the lengths and loads of the training.

    task; training; sweep: what to train on and how. Three axes, of which every combination is asked, one case for each
    length: lengths (tokens of the sequences), loads (things to hold, such as needles; default: the task's own) and
    passes (how often the context is read before the questions; each number of times is counted apart). Between two
    readings memories are kept and all else is dropped (`LanguageModel.restart`), so only models with such a memory
    gain by a second one. memory: `fresh` for every sequence, or `persistent`: what a sequence left is there for the
    next one (the evaluation of Zhao & Jones, arXiv 2601.00671), in the order of the examples.
    examples: sequences at each length and load. eval_batch: read at once. chunk_size: tokens read in one call, the
    state carried on, so that long sequences need little memory. recent: an answer fewer than this many tokens back from
    its question is counted apart, since a memory that works in chunks has not written it yet.

    An answer is right if the likeliest token of the whole vocabulary is the one asked for.
    """

    measure: Literal["recall"] = "recall"
    task: RecallTask = NeedleTask()
    lengths: tuple[Size, ...] = Field(default=(256, 512, 1024, 2048, 4096, 8192), min_length=1)
    loads: tuple[Size, ...] | None = Field(default=None, min_length=1)
    passes: tuple[Size, ...] = Field(default=(1,), min_length=1)
    memory: tuple[Memory, ...] = Field(default=("fresh",), min_length=1)
    examples: Count = 64
    eval_batch: Size = 8
    chunk_size: Size = 4096
    recent: Amount = 64

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, passes: tuple[int, ...]) -> tuple[int, ...]:
        if list(passes) != sorted(set(passes)):
            raise ValueError(f"passes must be distinct and rising, such as [1, 2, 4], got {list(passes)}")
        return passes

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        for task in self._tasks():
            for length in self.lengths:
                task.check_length(length)
        if self.passes != (1,) and self.task.context_length(self.lengths[0]) is None:
            raise ValueError(
                f"passes must be [1] for {self.task.task}, got {list(self.passes)}: its questions stand among its "
                "context, which therefore cannot be read again without them; take the task needle"
            )
        return self

    def cases(self) -> list[Self]:
        return [self.model_copy(update={"lengths": (length,)}) for length in self.lengths]

    def ask(self, model: LanguageModel, *, seed: int, device: torch.device, progress: Progress) -> dict[str, Any]:
        """See `Trained.ask`; metrics are `rows`, `answers`, `state_bytes` (of one sequence, by length), `memories` and
        `text`.

        A row has `length`, `load`, `passes`, `memory`, `depth` (lower edge of its quarter, None where no single place
        holds the answer), `recent`, `correct`, `total` and `chance`. Answers have for every length, load, passes and
        memory a string a sequence, `hits`, a character a question in their order: `1` right, `0` wrong, `r` and `w`
        the same of recent ones. Memories say what each sparse memory did with the first sequences of each length and
        load, memories being fresh: `length`, `load`, and what `SparseMemories.rows` says. Empty for a model without.
        """
        cells = [(task, length, memory) for length in self.lengths for task in self._tasks() for memory in self.memory]
        rows: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        memories: list[dict[str, Any]] = []
        state_bytes: dict[str, int] = {}
        for number, (task, length, memory) in enumerate(cells):
            asked = _Asked(self, task, length, memory)
            share = part_of(progress, number / len(cells), (number + 1) / len(cells))
            held = asked.read(model, seed, device, share)
            rows += asked.rows()
            answers += asked.answers()
            memories += asked.memories
            state_bytes.setdefault(str(length), held)
        found = {"rows": rows, "answers": answers, "state_bytes": state_bytes, "memories": memories}
        return {**found, "text": self.task.describe_text()}

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: every reading of every load, sequences with a lasting memory one by one."""
        readings = (len(self.passes) + self.passes[-1] - 1) * len(self.loads or (0,))
        total = 0.0
        for memory in self.memory:
            rows = 1 if memory == "persistent" else min(self.eval_batch, self.examples)
            calls = readings * math.ceil(self.examples / rows)
            for length in self.lengths:
                total += calls * call("forward", rows, length, at_once=self.chunk_size)
        return total

    def _tasks(self) -> Iterator[RecallTask]:
        """The task at each of its loads."""
        return (self.task.with_load(load) for load in self.loads) if self.loads is not None else iter((self.task,))

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        right: Counter[tuple[int, int, str, int]] = Counter()
        total: Counter[tuple[int, int, str, int]] = Counter()
        for row in (result.metrics or {})["rows"]:
            if not row["recent"]:
                cell = (row["load"] or 0, row["passes"], row["memory"], row["length"])
                right[cell] += row["correct"]
                total[cell] += row["total"]
        for load, passes, memory, length in sorted(total):
            again = f", context read {passes} times" if passes > 1 else ""
            kept = ", memory kept between sequences" if memory == "persistent" else ""
            title = f"recall{again}{kept}: % right at load {load} by length, of the models taught"
            cell = (load, passes, memory, length)
            yield Entry(title, length, 100 * right[cell] / total[cell], one_decimal)


class _Asked:
    """The answers at one length and load, with one kind of memory."""

    def __init__(self, recall: Recall, task: Task, length: int, memory: Memory) -> None:
        self.recall, self.task, self.length, self.memory = recall, task, length, memory
        self.total: Counter[tuple[int, float | None, bool]] = Counter()
        self.correct: Counter[tuple[int, float | None, bool]] = Counter()
        self.hits: dict[int, list[str]] = {passes: [] for passes in recall.passes}
        self.memories: list[dict[str, Any]] = []

    @torch.no_grad()
    def read(self, model: LanguageModel, seed: int, device: torch.device, progress: Progress) -> int:
        """Ask all examples; returns the bytes of the state of one sequence after its first reading."""
        recall, kept, held = self.recall, None, 0
        # sequences whose memory is handed on come one after the other
        batch = 1 if self.memory == "persistent" else recall.eval_batch
        for sequences in self.task.eval_batches(self.length, recall.examples, seed, batch):
            first = self.memory == "fresh" and not self.hits[recall.passes[0]]
            watching = self._watching(model, sequences) if first else nullcontext()
            with watching, autocast(device, recall.training.precision):
                right, state = self._hits(model, sequences, device, kept)
            held = held or state.nbytes // len(sequences.tokens)
            if self.memory == "persistent":
                kept = model.restart(state)
            self._count(sequences, right)
            done = len(self.hits[recall.passes[0]]) / recall.examples
            progress(
                done, Doing(self._stage(), {"accuracy": sum(self.correct.values()) / max(1, sum(self.total.values()))})
            )
        return held

    def _stage(self) -> str:
        load = "" if self.task.load is None else f", load {self.task.load}"
        memory = "" if self.memory == "fresh" else f", {self.memory} memory"
        return f"asking {self.length:,} tokens{load}{memory}"

    @contextmanager
    def _watching(self, model: LanguageModel, batch: Batch) -> Iterator[None]:
        """Notes what sparse memories do while `batch` is read for the first time."""
        seen = SparseMemories(model, batch.targets != IGNORE)
        with watch_fwpkm(seen):
            yield
        self.memories = [{"length": self.length, "load": self.task.load, **row} for row in seen.rows()]

    def _hits(
        self, model: LanguageModel, batch: Batch, device: torch.device, state: ModelState | None
    ) -> tuple[dict[int, torch.Tensor], ModelState]:
        """By number of passes, which answers are right; and the state after the first reading, questions included."""
        context, chunk_size = self.task.context_length(self.length), self.recall.chunk_size
        hits: dict[int, torch.Tensor] = {}
        after: ModelState | None = None
        for reading in range(1, self.recall.passes[-1] + 1):
            if reading in self.recall.passes:
                hits[reading], last = answers_right(model, batch, device, state, chunk_size)
                after = after or last
            if reading < self.recall.passes[-1]:
                _, read = model.read(batch.tokens[:, :context], state, chunk_size=chunk_size)
                state = model.restart(read)
        assert after is not None
        return hits, after

    def _count(self, batch: Batch, hits: dict[int, torch.Tensor]) -> None:
        scored = batch.targets != IGNORE
        depths, distances = batch.depths[scored].tolist(), batch.distances[scored].tolist()
        sizes = scored.sum(1).tolist()
        for passes, right in hits.items():
            characters = []
            for depth, distance, hit in zip(depths, distances, right.tolist(), strict=True):
                recent = 0 < distance < self.recall.recent
                bucket = passes, max((edge for edge in DEPTH_EDGES if edge <= depth), default=None), recent
                self.total[bucket] += 1
                self.correct[bucket] += hit
                characters.append(("wr" if recent else "01")[hit])
            line = iter(characters)
            self.hits[passes] += ["".join(next(line) for _ in range(size)) for size in sizes]

    def _cell(self, passes: int) -> dict[str, Any]:
        return {"length": self.length, "load": self.task.load, "passes": passes, "memory": self.memory}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                **self._cell(passes),
                "depth": depth,
                "recent": recent,
                "correct": self.correct[passes, depth, recent],
                "total": self.total[passes, depth, recent],
                "chance": self.task.chance,
            }
            for passes, depth, recent in sorted(self.total, key=lambda key: (key[0], key[1] or 0.0, key[2]))
        ]

    def answers(self) -> list[dict[str, Any]]:
        return [{**self._cell(passes), "hits": hits} for passes, hits in self.hits.items()]


def answers_right(
    model: LanguageModel, batch: Batch, device: torch.device, state: ModelState | None, chunk_size: int
) -> tuple[torch.Tensor, ModelState]:
    """For each scored position of `batch`, in row-major order, whether the likeliest token is the target, bool `[n]`;
    and the state after the sequences.

    state: what earlier readings left; it stays as it is. chunk_size: tokens read at once.
    Raises `NotFiniteError` if a logit is NaN or infinite.
    """
    scored = batch.targets != IGNORE
    features, after = model.read(batch.tokens, state, chunk_size=chunk_size, scored=scored)
    logits = model.head(features).float()
    if not logits.isfinite().all():
        raise NotFiniteError(f"logits are not finite after reading {batch.tokens.shape[1]} tokens")
    return logits.argmax(-1).cpu() == batch.targets[scored], after
