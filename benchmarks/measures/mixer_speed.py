"""Mixer speed: one mixer by itself against causal softmax attention of the same width, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F
from typing_extensions import Self

from ...mixers import Mixer, create_mixer
from ...mixers.limits import Count, Size, Width
from ...models import ModelConfig, compile_totals, compiled, compiled_since, parse_layout
from ..doing import Progress
from ..precision import Precision, autocast, resolve
from ..training import Compile
from .bars import Bar, attention_ratios
from .base import CallSeconds, check_compiles, part_of
from .contest import Contender, Contest, in_turn_seconds, peaks_in_turn, row, time_in_turn

MIXER, ATTENTION = "mixer", "attention"
LINEAR = ("O(T)", "O(T log T)")
Mode = Literal["forward", "train", "prefill", "decode"]
Work = Callable[[Any], object]
_ATTENTION_MODES = ("forward", "train", "prefill")


class MixerSpeed(Contest):
    """Seconds of the first mixer of the layout, without a model around it, on random input of width d_model.

    modes: `forward` without gradients, `train` (forward and backward), `prefill` (as forward, and the state after it),
    and `decode`, one token after a context of that length. lengths: tokens.
    d_head: of the attention that it is compared with, PyTorch's fused kernel alone, causal, with `d_model / d_head`
    heads and without projections. batch: sequences at once. rounds: of each. new_tokens: decoded in a round.
    compile: `off`, or the mode of `torch.compile`, of the mixer alone; for `forward` and `train`.
    bars: of kind `attention` and mode `forward` or `train`, the most that the ratio may be; they hold for mixers whose
    card says that their time is linear (or linear times a logarithm) in the length.
    """

    measure: Literal["mixer_speed"] = "mixer_speed"
    modes: tuple[Mode, ...] = Field(default=("forward", "decode"), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(4096,), min_length=1)
    d_head: Width = 64
    batch: Size = 1
    rounds: Count = 7
    new_tokens: Size = 16
    precision: Precision = "auto"
    compile: Compile = False
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _bars_fit(self) -> Self:
        check_compiles(self.compile, self.modes)
        for bar in self.bars:
            fits = (bar.kind, bar.backend, bar.over) == ("attention", MIXER, ATTENTION)
            if not fits or bar.mode not in ("forward", "train"):
                needed = f"kind: attention, mode: forward or train, backend: {MIXER} and over: {ATTENTION}"
                raise ValueError(f"a bar of mixer_speed has {needed}")
        return self

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: the mixer and the attention in turn; after a context, the mixer alone."""
        total = 0.0
        for length in self.lengths:
            for mode in self.modes:
                if mode == "decode":
                    token = call("decode", self.batch, length, part="mixer")
                    total += call("forward", self.batch, length, part="mixer")
                    total += in_turn_seconds(self.new_tokens * token, self.rounds, repeats=False)
                    continue
                for part in ("mixer", "attention"):
                    once = call("train" if mode == "train" else "forward", self.batch, length, part=part)
                    total += in_turn_seconds(once, self.rounds)
        return total

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `mixer`, `rows`, `ratios` (see `attention_ratios`) and `state_bytes`;
        with `compile` also `compile_seconds`, which no sample holds, and `graph_breaks`.

        A row is the mixer or the attention (`backend`) in one mode at one length: `median`, `q1`, `q3` of seconds (of a
        call, in mode decode of one token), `rounds`, `samples`, `first_call_seconds`, `ran` (op -> backends), `units`
        (tokens that the seconds are of), `batch`, `peak_bytes` and `method`. state_bytes: by length, where decoding is
        measured.
        """
        mixer = _first_mixer(config, seed, device)
        before = compile_totals() if self.compile else {}
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.batch, max(self.lengths), config.d_model, generator=generator).to(device)
        contenders, state_bytes = [], {}
        for length in self.lengths:
            for mode in self.modes:
                if mode in _ATTENTION_MODES:
                    work = self._mixer_work(mode, mixer, x[:, :length])
                    attention = self._attention_work(mode, config.d_model, length, x)
                    contenders.append(Contender(MIXER, mode, length, work))
                    contenders.append(Contender(ATTENTION, mode, length, attention))
            if "decode" in self.modes:
                contender, size = self._decode(mixer, x[:, :length])
                contenders.append(contender)
                state_bytes[str(length)] = size
        timings = time_in_turn(
            contenders, device, rounds=self.rounds, slow_rounds=self.rounds, progress=part_of(progress, 0.0, 0.8)
        )
        peaks = peaks_in_turn(contenders, device, part_of(progress, 0.8, 1.0))
        rows = [
            row(c, own, batch=self.batch, units=self.batch * (1 if c.mode == "decode" else c.tokens), **peak)
            for c, own, peak in zip(contenders, timings, peaks)
        ]
        bars = self.bars if mixer.card.complexity in LINEAR else ()
        return {
            "mixer": mixer.card.name,
            "complexity": mixer.card.complexity,
            "rows": rows,
            "ratios": attention_ratios(rows, bars),
            "state_bytes": state_bytes,
            **(compiled_since(before) if self.compile else {}),
        }

    def _mixer_work(self, mode: Mode, mixer: Mixer, x: torch.Tensor) -> Work:
        call: Callable[..., Any] = compiled(mixer, self.compile, x.device) if self.compile else mixer
        d_y = torch.randn_like(x)

        def train(_: Any) -> object:
            leaf = x.detach().requires_grad_()
            with autocast(x.device, self.precision):
                y = call(leaf)[0]
            return y, torch.autograd.grad(y, [leaf, *mixer.parameters()], d_y.to(y.dtype), allow_unused=True)

        @torch.no_grad()
        def read(_: Any) -> object:
            with autocast(x.device, self.precision):
                return call(x, None, True) if mode == "prefill" else call(x)

        return train if mode == "train" else read

    def _attention_work(self, mode: Mode, d_model: int, length: int, x: torch.Tensor) -> Work:
        heads = max(1, d_model // self.d_head)
        # as the layer around it hands them over: a cast of its own would be timed with it
        shape, dtype = (self.batch, heads, length, self.d_head), getattr(torch, resolve(self.precision, x.device))
        q, k, v, d_y = (torch.randn(shape, device=x.device, dtype=dtype) for _ in range(4))

        def train(_: Any) -> object:
            queries, keys, values = (t.detach().requires_grad_() for t in (q, k, v))
            y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return y, torch.autograd.grad(y, [queries, keys, values], d_y)

        @torch.no_grad()
        def read(_: Any) -> object:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return train if mode == "train" else read

    def _decode(self, mixer: Mixer, x: torch.Tensor) -> tuple[Contender, int]:
        """The contender, and the bytes of the state after the context."""
        token = x[:, :1]

        @torch.no_grad()
        def decode(state: Any, count: int) -> Any:
            y = token
            with autocast(x.device, self.precision):
                for _ in range(count):
                    y, state = mixer(token, state, True)
            return y, state

        with torch.no_grad(), autocast(x.device, self.precision):
            _, context = mixer(x, None, True)
        assert context is not None
        # The first token is not timed: continuing a state a second time may copy a buffer, decoding on never does.
        contender = Contender(
            MIXER,
            "decode",
            x.shape[1],
            lambda state: decode(state, self.new_tokens),
            prepare=lambda: decode(context, 1)[1],
            units=self.new_tokens,
        )
        return contender, context.nbytes


def _first_mixer(config: ModelConfig, seed: int, device: torch.device) -> Mixer:
    spec = parse_layout(config.layout).pattern[0].mixer
    torch.manual_seed(seed)
    options = {**config.mixer_defaults.get(spec.name, {}), **spec.options}
    return create_mixer(spec.name, config.d_model, **options).to(device).eval()
