"""Decode speed: a model's decoder against calling the model for every token, in turn in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from ...mixers.limits import Count, Size
from ...models import ModelConfig
from ..doing import Progress
from ..training import Precision
from .bars import Bar, decoder_ratios
from .base import CallSeconds, part_of
from .contest import Contender, Contest, in_turn_seconds, peaks_in_turn, row, time_in_turn
from .workload import Workload

DECODER, CALLS = "decoder", "calls"


class DecodeSpeed(Contest):
    """Seconds of a decoded token by `LanguageModel.decoder`, and by calling the model with its state for every token.

    The model is freshly initialised, the context random tokens; each next token is the likeliest. What a decoder
    records, it records before. lengths: of the context. batch: sequences at once. rounds: of each. new_tokens: decoded
    in a round. bars: of kind `decoder`, the most that the ratio may be.
    """

    measure: Literal["decode_speed"] = "decode_speed"
    lengths: tuple[Size, ...] = Field(default=(512,), min_length=1)
    batch: Size = 1
    rounds: Count = Field(default=9, ge=3)
    new_tokens: Size = 128
    precision: Precision = "auto"
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _bars_fit(self) -> Self:
        for bar in self.bars:
            if (bar.kind, bar.mode, bar.backend, bar.over) != ("decoder", "decode", DECODER, CALLS):
                needed = f"kind: decoder, mode: decode, backend: {DECODER}, over: {CALLS}"
                raise ValueError(f"a bar of decode_speed has {needed}")
        return self

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: the context is read for both of them, and each decodes in its turn."""
        total = 0.0
        for length in self.lengths:
            once = self.new_tokens * call("decode", self.batch, length)
            total += 2 * (call("forward", self.batch, length) + in_turn_seconds(once, self.rounds, repeats=False))
        return total

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows`, `ratios` (see `decoder_ratios`) and `how`: mixer's place -> how the
        decoder treats it, see `Decoder.how`.

        A row is the decoder or the calls (`backend`) after one context: `median`, `q1`, `q3` of the seconds of a token
        of every sequence, `rounds`, `samples`, `first_call_seconds`, `ran` (op -> backends), `units`, `batch`,
        `peak_bytes` and `method`.
        """
        contenders, works = [], []
        for length in self.lengths:
            work = Workload(config, batch=self.batch, length=length, seed=seed, device=device, precision=self.precision)
            decoding, calling = work.decoding(self.new_tokens), work.calling(self.new_tokens)
            contenders.append(Contender(DECODER, "decode", length, *decoding[::-1], units=self.new_tokens))
            contenders.append(Contender(CALLS, "decode", length, *calling[::-1], units=self.new_tokens))
            works.append(work)
        timings = time_in_turn(
            contenders, device, rounds=self.rounds, slow_rounds=self.rounds, progress=part_of(progress, 0.0, 0.8)
        )
        peaks = peaks_in_turn(contenders, device, part_of(progress, 0.8, 1.0))
        rows = [
            row(contender, own, batch=self.batch, units=self.batch, **peak)
            for contender, own, peak in zip(contenders, timings, peaks)
        ]
        return {"rows": rows, "ratios": decoder_ratios(rows, self.bars), "how": works[-1].how}
