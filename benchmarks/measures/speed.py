"""Speed: seconds and tokens per second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from ...mixers.limits import Count, Real, Size
from ...models import ModelConfig, compile_totals, compiled_since
from ..doing import Progress
from ..runs import ResultLine
from ..training import Compile, Precision
from .base import CallSeconds, Measure, check_compiles, single, split_grid
from .entry import Entry
from .meter import MIN_ROUND_SECONDS, quartiles, time_rounds, warmed_up
from .workload import Workload

Mode = Literal["forward", "train", "prefill", "decode"]


class Speed(Measure):
    """Time of a freshly initialised model on random tokens, one case for each mode and length.

    modes: `forward` (logits of every position), `train` (forward, backward, AdamW step), `prefill` (read a context and
    keep the state, logits at its end), `decode` (one token at a time after a context of that length, by the model's
    decoder). batch: sequences
    at once. rounds: at least so many; more while they fit in budget_seconds. new_tokens: decoded in a round.
    compile: `off`, or the mode of `torch.compile`; for `forward` and `train`.
    """

    exclusive: ClassVar[bool] = True
    measure: Literal["speed"] = "speed"
    modes: tuple[Mode, ...] = Field(default=("forward", "train", "prefill", "decode"), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(256, 512, 1024, 2048, 4096, 8192), min_length=1)
    batch: Size = 1
    rounds: Count = Field(default=7, ge=3)
    budget_seconds: Real = Field(default=2.0, ge=0)
    new_tokens: Size = 16
    precision: Precision = "auto"
    compile: Compile = False

    @model_validator(mode="after")
    def _can_be_compiled(self) -> Self:
        check_compiles(self.compile, self.modes)
        return self

    def cases(self) -> list[Self]:
        return split_grid(self)

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `seconds` and `tokens_per_second` (`median`, `q1`, `q3`), `rounds`, `samples`
        and `first_call_seconds`, of the call before the warm-up, which compiles and allocates. With `compile` also
        `compile_seconds`, which no sample holds, and `graph_breaks`.

        Seconds are of one call, in mode decode of one token of every sequence; samples are the seconds of each round.
        """
        mode, length = single(self.modes, "modes"), single(self.lengths, "lengths")
        sizes: dict[str, Any] = {"batch": self.batch, "length": length, "seed": seed, "device": device}
        work = Workload(config, **sizes, precision=self.precision, compile=self.compile)
        before = compile_totals() if self.compile else {}
        options: dict[str, Any] = {"rounds": self.rounds, "budget_seconds": self.budget_seconds, "progress": progress}
        if mode == "decode":
            prepare, decode = work.decoding(self.new_tokens)
            read = self.batch * self.new_tokens
            timing = time_rounds(decode, device, prepare=prepare, tokens=read, **options).per(self.new_tokens)
        else:
            call = {"forward": work.forward, "train": work.train_step, "prefill": work.prefill}[mode]
            timing = time_rounds(lambda _: call(), device, tokens=self.batch * length, **options)
        tokens = self.batch * (1 if mode == "decode" else length)
        return {
            "seconds": quartiles(timing.samples),
            "tokens_per_second": quartiles([tokens / seconds for seconds in timing.samples]),
            "rounds": len(timing.samples),
            "samples": timing.samples,
            "first_call_seconds": timing.first_seconds,
            **(compiled_since(before) if self.compile else {}),
        }

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: the first call, the warm-up, and rounds until both bounds are kept."""
        total = 0.0
        for mode in self.modes:
            for length in self.lengths:
                logits = 0.0 if mode == "prefill" else 1.0
                once = call("train" if mode == "train" else "forward", self.batch, length, logits=logits)
                if mode == "decode":
                    total, once = total + once, self.new_tokens * call("decode", self.batch, length)
                total += warmed_up(once, max(self.rounds * max(once, MIN_ROUND_SECONDS), self.budget_seconds))
        return total

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        mode, length, metrics = result.parameters["modes"][0], result.parameters["lengths"][0], result.metrics or {}
        title = f"speed, {mode}: tokens/s (median) by length"
        yield Entry(title, length, metrics["tokens_per_second"]["median"])
