"""What a measure is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from ...models import ModelConfig
from ..doing import Progress
from ..precision import Precision, resolve
from ..runs import ResultLine
from ..tasks import Task
from ..training import Compile
from .entry import Entry
from .registry import register


class CallSeconds(Protocol):
    """About how many seconds a call takes: over `rows` sequences of `length` tokens; in mode decode, one token of each
    after so many. logits: the share of positions that get some. part: the whole model, its first mixer alone, or causal
    attention of its width without projections. at_once: how many tokens are read at a time, the state carried on."""

    def __call__(
        self,
        mode: Literal["forward", "train", "decode"],
        rows: float,
        length: int,
        *,
        logits: float = 0.0,
        part: Literal["model", "mixer", "attention"] = "model",
        at_once: int | None = None,
    ) -> float: ...


class Measure(BaseModel):
    """A measure; its fields are its parameters in a suite. Subclasses add `measure: Literal[name]`, by which a suite
    finds them, and write `run`.

    exclusive: nothing else may run on the machine beside it. reusable: another run's result serves as well, since its
    case says all that it depends on but the code; what takes time or memory is measured anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    exclusive: ClassVar[bool] = False
    reusable: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        if "measure" in inspect.get_annotations(cls):
            register(cls)

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cases that compile nothing do not say so: those of before there was the choice keep their ids."""
        fields = dump(self)
        return {name: value for name, value in fields.items() if name != "compile" or value}

    def cases(self) -> list[Self]:
        """One measure for each case that this one stands for; those that measure a grid of sizes split it up."""
        return [self]

    def on(self, device: str) -> Self:
        """The same with the precision of everything in it decided, where that is left to the device."""
        fields, changes = dict(self), {}
        if "precision" in fields:
            changes["precision"] = resolve(fields["precision"], device)
        if "training" in fields:
            changes["training"] = fields["training"].on(device)
        return self.model_copy(update=changes)

    @property
    def computes_in(self) -> Precision:
        """The precision that it measures in; of a trained model, that of its training; float32 if it has neither."""
        fields = dict(self)
        of_training = fields["training"].precision if "training" in fields else "float32"
        return fields.get("precision", of_training)

    @property
    def processes(self) -> int:
        """How many processes share the work of a case, each with a GPU of its own on CUDA."""
        return 1

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Measure the model `config`; returns metrics, fit for JSON.

        seed: of the parameters and the data. folder: may keep files, for a later run of the same case to use.
        Raises `ValueError` if the model cannot do the task, `NotFiniteError` if numbers stop being finite.
        """
        raise NotImplementedError

    def seconds(self, call: CallSeconds) -> float | None:
        """About what a case of this measure takes, its start left out, by what calls of its model take: all that it
        reads, as if nothing ended early. None: that cannot be told, only measured."""
        return None

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        """What a result that is `ok` adds to the tables that end a run: every number at the top of its metrics."""
        for name, value in (result.metrics or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield Entry(result.measure.replace("_", " "), name.replace("_", " "), value)


def check_vocabulary(config: ModelConfig, task: Task) -> None:
    """Raise `ValueError` if the model has fewer token ids than the task uses."""
    if config.vocab_size < task.vocab_size:
        raise ValueError(
            f"the task uses {task.vocab_size} token ids but the model has vocab_size={config.vocab_size}; "
            "raise vocab_size, or give the task fewer keys and values"
        )


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a piece of work that is the stretch `start..end` of the whole."""
    return lambda fraction, doing: progress(start + fraction * (end - start), doing)


def split_grid(measure: Any) -> list[Any]:
    """Copies of a measure with one of its `modes` and one of its `lengths` each."""
    return [
        measure.model_copy(update={"modes": (mode,), "lengths": (length,)})
        for length in measure.lengths
        for mode in measure.modes
    ]


def check_compiles(compile: Compile, modes: tuple[str, ...]) -> None:
    """Raise `ValueError` for modes that cannot be compiled: those that carry a state, which is no tensor."""
    others = [mode for mode in modes if mode not in ("forward", "train")]
    if compile and others:
        raise ValueError(
            f"compile: {compile} is for the modes forward and train, not for {', '.join(others)}; take off"
        )


def single(values: tuple[Any, ...], name: str) -> Any:
    """The only one of `values`. Raises `ValueError` if there are more: a grid is to be split with `cases()` first."""
    if len(values) != 1:
        raise ValueError(f"a case has one of its {name}, got {list(values)}; run the measures that cases() returns")
    return values[0]
