"""Overhead: a model against the same model without what its layout inserts, in turn in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from ...mixers.limits import Count, Size
from ...models import ModelConfig, compile_totals, compiled_since, parse_layout
from ..doing import Progress
from ..training import Compile, Precision
from .bars import Bar, overheads
from .base import part_of
from .contest import Contender, Contest, peaks_in_turn, row, time_in_turn
from .workload import Workload

WITH, WITHOUT = "with", "without"


class Overhead(Contest):
    """What the mixers right of the layout's `|` cost a whole model: both freshly initialised, on random tokens.

    modes: `forward`, `train` (forward, backward, AdamW step). lengths: tokens. batch: sequences at once. rounds: of
    each model. compile: `off`, or the mode of `torch.compile`. bars: of kind `overhead`, the most that the ratio may
    be.
    """

    measure: Literal["overhead"] = "overhead"
    modes: tuple[Literal["forward", "train"], ...] = Field(default=("train",), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(4096,), min_length=1)
    batch: Size = 1
    rounds: Count = Field(default=7, ge=3)
    precision: Precision = "auto"
    compile: Compile = False
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _bars_fit(self) -> Self:
        for bar in self.bars:
            if (bar.kind, bar.backend, bar.over) != ("overhead", WITH, WITHOUT) or bar.mode not in self.modes:
                needed = f"kind: overhead, backend: {WITH}, over: {WITHOUT}, and a mode of {list(self.modes)}"
                raise ValueError(f"a bar of overhead has {needed}")
        return self

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows` and `ratios`, see `overheads`; with `compile` also `compile_seconds`,
        which no sample holds, and `graph_breaks`.

        A row is one model (`backend`: `with` or `without`) in one mode at one length: `median`, `q1`, `q3` of seconds,
        `rounds`, `samples`, `first_call_seconds`, `ran` (op -> the backends that this model took), `units`
        (tokens that the seconds are of), `batch`, `peak_bytes` and `method`.
        Raises `ValueError` if the layout inserts nothing.
        """
        layout = parse_layout(config.layout)
        if not layout.insertions:
            raise ValueError(f"the layout {config.layout!r} inserts nothing, so it has nothing to do without")
        plain = dataclasses.replace(config, layout=str(dataclasses.replace(layout, insertions=())))
        contenders = []
        before = compile_totals() if self.compile else {}
        for length in self.lengths:
            for name, model in ((WITH, config), (WITHOUT, plain)):
                sizes: dict[str, Any] = {"batch": self.batch, "length": length, "seed": seed, "device": device}
                work = Workload(model, **sizes, precision=self.precision, compile=self.compile)
                for mode in self.modes:
                    contenders.append(_contender(work, name, mode, length))
        timings = time_in_turn(
            contenders, device, rounds=self.rounds, slow_rounds=self.rounds, progress=part_of(progress, 0.0, 0.8)
        )
        peaks = peaks_in_turn(contenders, device, part_of(progress, 0.8, 1.0))
        rows = [
            row(contender, own, batch=self.batch, units=self.batch * contender.tokens, **peak)
            for contender, own, peak in zip(contenders, timings, peaks)
        ]
        found = compiled_since(before) if self.compile else {}
        return {"rows": rows, "ratios": overheads(rows, self.bars), **found}


def _contender(work: Workload, name: str, mode: str, length: int) -> Contender:
    call = work.train_step if mode == "train" else work.forward
    return Contender(name, mode, length, lambda _: call())
