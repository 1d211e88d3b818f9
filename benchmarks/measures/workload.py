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
from .outputs import require_finite

Decoding = tuple[Callable[[], Any], Callable[[Any], tuple[Tensor, Tensor]]]
"""What prepares decoding after the context, and decodes on from what that returns: the last token and its logits."""


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

    def train_step(self) -> tuple[Tensor, LanguageModel]:
        """Forward, backward and an AdamW step; returns the loss, and the model, which has the gradients."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss, self.model

    @torch.no_grad()
    def read(self, tokens: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState, Tensor]:
        """Read `tokens [batch, time]` on from `state`; returns the likeliest next token `[batch, 1]`, the state, and
        the logits that the token is the likeliest by."""
        with autocast(self.device, self.precision):
            features, state = self.model.features(tokens, state, return_state=True)
            logits = self.model.head(features[:, -1:])
            next_token = logits.argmax(-1)
        assert state is not None
        return next_token, state, logits

    def prefill(self) -> tuple[Tensor, ModelState, Tensor]:
        """Read the whole context; logits at its end only."""
        return self.read(self.tokens)

    def calling(self, new_tokens: int) -> Decoding:
        """`new_tokens` tokens one at a time after the context, each the likeliest, by calling the model.

        What is prepared for it is a first token: continuing a state a second time may copy a buffer, which decoding on
        and on never does.
        """
        token, context, said = self.prefill()
        require_finite(said, "the prefill")

        def decode(start: tuple[Tensor, ModelState, Tensor]) -> tuple[Tensor, Tensor]:
            token, state, logits = start
            for _ in range(new_tokens):
                token, state, logits = self.read(token, state)
            return token, logits

        return lambda: self.read(token, context), decode

    def decoding(self, new_tokens: int) -> Decoding:
        """The same by the model's decoder, which enters autocast once and casts weights once; it has recorded its step
        by the end of what is prepared."""
        token, state, said = self.prefill()
        require_finite(said, "the prefill")
        dtype = torch.bfloat16 if resolve(self.precision, self.device) == "bfloat16" else None
        decoder = self.model.decoder(len(token), state.position + 1 + new_tokens, dtype=dtype)

        def start() -> Tensor:
            decoder.state = state
            first = decoder.step(token[:, 0]).argmax(-1)
            self.how = decoder.how
            return first

        def decode(token: Tensor) -> tuple[Tensor, Tensor]:
            logits = said
            for _ in range(new_tokens):
                logits = decoder.step(token)
                token = logits.argmax(-1)
            return token, logits

        return start, decode
