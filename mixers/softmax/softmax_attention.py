"""Softmax attention over everything before a token: the reference that all others are measured against."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import nn

from ..interface import MixerCard
from ..ops.attention import OP
from ..options import option
from ..registry import register_mixer
from .base import KeyValueAttention

LOG_SCALE = 0.168  # where the learned factor of log(n) starts: about 1 / log(n) on average over the first 1,024 tokens


@register_mixer
class SoftmaxAttention(KeyValueAttention):
    """Causal softmax attention with grouped queries; every token stays in the state.

    positions: `rope` turns queries and keys by their positions; `nope` leaves them; `yarn` turns them for texts
    `factor` times longer than the `trained_length` tokens of the training (Peng et al. 2023, 2309.00071), with sharper
    attention. `extend_context` turns it on after the training.
    logit_scale: `log` multiplies the logits of a token that sees n tokens by s log(n), s being learned for each head,
    so that attention stays as sharp over a long text ("scalable softmax", Nakanishi 2025, 2501.19399).
    rotary_fraction: the share of a head's features, the first ones, that turn with the position (GPT-NeoX).
    sinks: a learned logit per head joins each softmax without a value, as in gpt-oss, so that a head may look at
    nothing; it starts at 0.
    The rest: see `KeyValueAttention`. Raises `ValueError` for options that do not fit together.
    """

    train_window = cast("int | None", None)
    """In training mode, a token sees itself and the `train_window - 1` tokens before it only; None: all. Whoever trains
    sets it from step to step (the FwPKM paper, 2601.00671, trains with a window in nine steps of ten). No option, and
    without effect on states and in `eval()` mode."""

    card = MixerCard(
        name="softmax_attention",
        family="softmax",
        summary="Causal softmax attention over all tokens, with grouped queries and rotary embedding",
        paper="Vaswani et al., Attention Is All You Need",
        arxiv="1706.03762",
        year=2017,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(d)) v_s",
        complexity="O(T^2)",
        ops=(OP,),
    )

    positions: Literal["rope", "nope", "yarn"] = option("how positions enter", default="rope")
    factor: float = option("yarn: how many times longer texts get", default=1.0, least=1)
    trained_length: int | None = option("yarn: length of the training in tokens", default=None, least=1)
    logit_scale: Literal["none", "log"] = option("what the logits are multiplied by", default="none")

    rotary_fraction: float = option("share of the features that turn", default=1.0, above=0, most=1)
    sinks: bool = option("a learned logit per head for looking at nothing", default=False)

    def build(self) -> None:
        _check_positions(self.positions, self.factor, self.trained_length)
        super().build()
        if self.sinks:
            self.sink_logits = nn.Parameter(torch.zeros(self.heads))
        if self.logit_scale == "log":
            self.log_scale = nn.Parameter(torch.full((self.heads,), LOG_SCALE))

    def extend_context(self, factor: float, trained_length: int) -> None:
        """Read texts `factor` times longer than the `trained_length` tokens of the training, by YaRN, from now on.

        factor 1 goes back to plain rotary embedding. Keys of another factor are turned by other angles, so a state that
        was made before is refused: its signature names the factor. The weights stay, and so does what `state_dict` and
        a saved model say: set it again after loading.
        Raises `ValueError` for positions="nope", where nothing is turned, and for a factor below 1.
        """
        if self.positions == "nope":
            raise ValueError('positions="nope" has no angles to extend')
        _check_positions("yarn", factor, trained_length)
        self.positions = "rope" if factor == 1 else "yarn"
        self.factor, self.trained_length = float(factor), None if factor == 1 else trained_length

    def _reach(self) -> int | None:
        return self.train_window if self.training else None


def _check_positions(positions: str, factor: float, trained_length: int | None) -> None:
    if positions != "yarn" and (factor != 1 or trained_length is not None):
        raise ValueError(f"factor and trained_length belong to positions='yarn', got them with {positions!r}")
    if positions == "yarn" and not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"factor must be at least 1, how many times longer texts get, got {factor}")
    if positions == "yarn" and (trained_length is None or trained_length < 1):
        raise ValueError(f"trained_length must be the length of the training in tokens, got {trained_length}")
