"""The pieces of work that speed and memory measure, on random tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models import LanguageModel, ModelConfig, ModelState, compiled
from ..precision import resolve
from ..training import Compile, Precision, autocast, make_optimizer

Decoding = tuple[Callable[[], Any], Callable[[Any], Tensor]]
"""What prepares decoding after the context, and decodes on from what that returns."""


class Workload:
    """A fresh model and `batch` sequences of `length` random tokens, on `device`.

    compile: what `forward`, `loss` and `train_step` call goes through `torch.compile`; see `compiled` for its errors.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        length: int,
        seed: int,
        device: torch.device,
        precision: Precision,
        compile: Compile = False,
    ) -> None:
        self.device, self.precision = device, precision
        self.how: dict[str, str] = {}  # of what was decoded last, see `Decoder.how`
        self.model = LanguageModel(dataclasses.replace(config, seed=seed)).to(device).eval()
        self._call: Callable[..., Any] = compiled(self.model, compile, device) if compile else self.model
        self.optimizer = make_optimizer(self.model, learning_rate=1e-4, weight_decay=0.1)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(config.vocab_size, (batch, length + 1), generator=generator).to(device)
        self.tokens, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Logits of every position."""
        with autocast(self.device, self.precision):
            return self._call(self.tokens)[0]

    def loss(self) -> Tensor:
        """The forward half of a training step: next-token cross-entropy over every position."""
        with autocast(self.device, self.precision):
            logits, _ = self._call(self.tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), self.targets.flatten())

    def train_step(self) -> None:
        """Forward, backward and an AdamW step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    @torch.no_grad()
    def read(self, tokens: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """Read `tokens [batch, time]` on from `state`; returns the likeliest next token `[batch, 1]` and the state."""
        with autocast(self.device, self.precision):
            features, state = self.model.features(tokens, state, return_state=True)
            next_token = self.model.head(features[:, -1:]).argmax(-1)
        assert state is not None
        return next_token, state

    def prefill(self) -> tuple[Tensor, ModelState]:
        """Read the whole context; logits at its end only."""
        return self.read(self.tokens)

    def calling(self, new_tokens: int) -> Decoding:
        """`new_tokens` tokens one at a time after the context, each the likeliest, by calling the model.

        What is prepared for it is a first token: continuing a state a second time may copy a buffer, which decoding on
        and on never does.
        """
        context = self.prefill()

        def decode(start: tuple[Tensor, ModelState]) -> Tensor:
            token, state = start
            for _ in range(new_tokens):
                token, state = self.read(token, state)
            return token

        return lambda: self.read(*context), decode

    def decoding(self, new_tokens: int) -> Decoding:
        """The same by the model's decoder, which enters autocast once and casts weights once; it has recorded its step
        by the end of what is prepared."""
        token, state = self.prefill()
        dtype = torch.bfloat16 if resolve(self.precision, self.device) == "bfloat16" else None
        decoder = self.model.decoder(len(token), state.position + 1 + new_tokens, dtype=dtype)

        def start() -> Tensor:
            decoder.state = state
            first = decoder.step(token[:, 0]).argmax(-1)
            self.how = decoder.how
            return first

        def decode(token: Tensor) -> Tensor:
            for _ in range(new_tokens):
                token = decoder.step(token).argmax(-1)
            return token

        return start, decode
