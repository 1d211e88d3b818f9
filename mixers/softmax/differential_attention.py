"""The difference of two attention maps: what both look at without reason cancels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, head_size, rotary_angles, split_heads
from ..ops.attention import OP, attention
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer
from ..stepping import Stepper, check_own
from .base import AttentionState, key_value_heads, own_buffer, rotary_size, rotate
from .stepping import Cache, CacheStepper

LAMBDA_DEVIATION = 0.1  # of the vectors that lambda is made of, at the start


@register_mixer
class DifferentialAttention(Mixer):
    """Differential attention (Ye et al. 2024, arXiv 2410.05258, eq. 1 to 4).

    Every head has two maps of d_head features and values of 2 d_head; it reads map 1 less lambda times map 2, which is
    normalised head by head and multiplied by `1 - lambda_init`, where `lambda_init = 0.8 - 0.6 exp(-0.3 layer)`, layers
    being counted from 0 as in the authors' code. The norm's weight is shared by the heads, as there. The heads of the
    first maps stand before those of the second, so that grouped queries share the keys of their own map.
    """

    card = MixerCard(
        name="differential_attention",
        family="softmax",
        summary="The difference of two softmax attentions per head, which cancels what both attend to without reason",
        paper="Ye et al., Differential Transformer",
        arxiv="2410.05258",
        year=2024,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t} (softmax_s(q_t . k_s / sqrt(d)) - lambda softmax_s(q'_t . k'_s / sqrt(d))) v_s",
        complexity="O(T^2)",
        ops=(OP,),
    )

    heads: int = option("heads, each of two attention maps", default=2, least=1, small=2)
    kv_heads: int = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a query and key; None: d_model / (2 heads)", default=None, least=1, small=8)
    positions: Literal["rope", "nope"] = option("how positions enter", default="rope")
    rope_theta: float = option("base of the rotary frequencies", default=10_000.0, above=0)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, 2 * self.heads, self.d_head)
        rotary_size(d_head, self.positions)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * self.layer)
        self.qkv_proj = nn.Linear(self.d_model, (self.heads + 2 * kv_heads) * 2 * d_head, bias=False)
        vectors = (nn.Parameter(LAMBDA_DEVIATION * torch.randn(d_head)) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = vectors
        self.o_norm = RMSNorm(2 * d_head)
        self.o_proj = nn.Linear(self.heads * 2 * d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: AttentionState | None, return_state: bool) -> tuple[Tensor, AttentionState | None]:
        q, k, v = self._project(x, 0 if state is None else state.position)
        if state is None:
            keys, values = GrowableBuffer.of(k), GrowableBuffer.of(v)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        first, second = (
            attention(queries, seen, values.values.to(q.dtype), backend=self.backend)
            for queries, seen in zip(q.split(self.heads, 2), keys.values.to(q.dtype).split(self.kv_heads, 2))
        )
        y = self._difference(first, second)
        if not return_state:
            return y, None
        keys, values = (own_buffer(buffer) if state is None else buffer for buffer in (keys, values))
        return y, self.next_state(AttentionState, x, state, keys=keys, values=values, conv=None)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        check_own(self, DifferentialAttention, "forward", "mix", "decode")
        return CacheStepper(self, max_length, static, ("keys", "values"))

    def decode(
        self, x: Tensor, position: Tensor, cache: Cache, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `CachingMixer`."""
        q, k, v = self._project(x, position)
        keys, values = cache.append(k, v)
        maps = zip(q.split(self.heads, 2), keys.split(self.kv_heads, 2))
        first, second = (cache.attend(queries, seen, values) for queries, seen in maps)
        return self._difference(first, second), {}

    def _difference(self, first: Tensor, second: Tensor) -> Tensor:
        """The output, from what the two maps read."""
        y = self.o_norm(first - self._lambda().to(first.dtype) * second) * (1 - self.lambda_init)
        return self.o_proj(y.flatten(2))

    def _project(self, x: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys `[batch, time, 2 heads or 2 kv_heads, d_head]`, values `[batch, time, kv_heads, 2 d_head]`."""
        heads = 2 * self.heads, 2 * self.kv_heads
        qk, v = self.qkv_proj(x).split([sum(heads) * self.d_head, self.kv_heads * 2 * self.d_head], dim=-1)
        qk = split_heads(qk, sum(heads))
        if self.positions == "rope":
            qk = rotate(qk, rotary_angles(position, x.shape[1], self.d_head, self.rope_theta, x.device))
        q, k = qk.split(heads, dim=2)
        return q, k, split_heads(v, self.kv_heads)

    def _lambda(self) -> Tensor:
        first, second = (
            (q.float() * k.float() if q.dtype != torch.float64 else q * k).sum().exp()
            for q, k in ((self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2))
        )
        return first - second + self.lambda_init
