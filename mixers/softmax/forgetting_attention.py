"""Softmax attention with a forget gate: tokens fade as the tokens after them say, so that no positions are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GateActivation, GatedOutput, RMSNorm, head_size, split_heads
from ..ops.attention import OP, attention
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer, MixerState
from ..stepping import Stepper, check_own
from .base import key_value_heads, own_buffer
from .stepping import Cache, CacheStepper


@dataclass(frozen=True, eq=False)
class ForgettingState(MixerState):
    """Keys and values `[batch, length, kv_heads, d_head]`, log_forget `[batch, length, heads]`.

    last: the last key and value before they were shifted, `[batch, 1, 2 kv_heads, d_head]`; None without token_shift.
    """

    keys: GrowableBuffer
    values: GrowableBuffer
    log_forget: GrowableBuffer
    last: Tensor | None


@register_mixer
class ForgettingAttention(Mixer):
    """Forgetting attention (Lin et al. 2025, arXiv 2503.02130, eq. 4), without positions.

    The logit of a pair of tokens is raised by the sum of `log sigmoid(decay_proj(x))` over the tokens after the key, up
    to the query; one gate per head. The defaults are the paper's "Pro" block: QK-norm, keys and values mixed with those
    of the token before (`token_shift`, the share being a sigmoid per key head), output norm and sigmoid output gate;
    all four False are its "LLaMA" block. Norm weights are shared by the heads, as in the paper's experiments. The bias
    of the forget gate starts at 0, as in the authors' code.
    """

    card = MixerCard(
        name="forgetting_attention",
        family="softmax",
        summary="Softmax attention whose logits fade by a data-dependent forget gate; no positions",
        paper="Lin et al., Forgetting Transformer: Softmax Attention with a Forget Gate",
        arxiv="2503.02130",
        year=2025,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(d) + sum_{s < r <= t} log f_r) v_s",
        complexity="O(T^2)",
        ops=(OP,),
    )

    heads: int = option("query heads, each with a forget gate", default=4, least=1, small=2)
    kv_heads: int = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    qk_norm: bool = option("normalise queries and keys head by head", default=True)
    token_shift: bool = option("mix keys and values with those of the token before", default=True)
    output_norm: bool = option("normalise what each head read", default=True)
    output_gate: bool = option("a sigmoid gate on every output feature", default=True)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        self.qkv_proj = nn.Linear(self.d_model, (self.heads + 2 * kv_heads) * d_head, bias=False)
        self.decay_proj = nn.Linear(self.d_model, self.heads)
        nn.init.zeros_(self.decay_proj.bias)
        self.shift_proj = nn.Linear(self.d_model, 2 * kv_heads, bias=False) if self.token_shift else None
        self.q_norm = RMSNorm(d_head) if self.qk_norm else None
        self.k_norm = RMSNorm(d_head) if self.qk_norm else None
        gate: GateActivation | None = "sigmoid" if self.output_gate else None
        self.out = GatedOutput(self.d_model, self.heads, d_head, gate=gate, norm=self.output_norm)

    def mix(
        self, x: Tensor, state: ForgettingState | None, return_state: bool
    ) -> tuple[Tensor, ForgettingState | None]:
        q, k, v, last = self._project(x, None if state is None else state.last)
        new = k, v, self._log_forget(x)
        if state is None:
            keys, values, forget = (GrowableBuffer.of(t) for t in new)
        else:
            keys, values, forget = (b.append(t) for b, t in zip((state.keys, state.values, state.log_forget), new))
        seen = keys.values.to(q.dtype), values.values.to(q.dtype)
        y = self.out(attention(q, *seen, log_forget=forget.values, backend=self.backend), x)
        if not return_state:
            return y, None
        if state is None:
            keys, values, forget = (own_buffer(buffer) for buffer in (keys, values, forget))
        return y, self.next_state(ForgettingState, x, state, keys=keys, values=values, log_forget=forget, last=last)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        check_own(self, ForgettingAttention, "forward", "mix", "decode")
        return CacheStepper(self, max_length, static, ("keys", "values", "log_forget"))

    def decode(
        self, x: Tensor, position: Tensor, cache: Cache, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `CachingMixer`."""
        q, k, v, last = self._project(x, carried.get("last"))
        keys, values, log_forget = cache.append(k, v, self._log_forget(x))
        y = self.out(cache.attend(q, keys, values, log_forget=log_forget), x)
        return y, {} if last is None else {"last": last}

    def _log_forget(self, x: Tensor) -> Tensor:
        """`[batch, time, heads]`, float32 at least."""
        decay = self.decay_proj(x)
        return F.logsigmoid(decay.to(torch.promote_types(decay.dtype, torch.float32)))

    def _project(self, x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values `[batch, time, heads or kv_heads, d_head]`, and the last token's before the shift."""
        qkv = split_heads(self.qkv_proj(x), self.heads + 2 * self.kv_heads)
        q, kv = qkv.split([self.heads, 2 * self.kv_heads], dim=2)
        new_last = None
        if self.shift_proj is not None:
            first = torch.zeros_like(kv[:, :1]) if last is None else last.to(kv.dtype)
            before = torch.cat([first, kv[:, :-1]], dim=1)
            new_last = kv[:, -1:].clone()
            kv = torch.lerp(kv, before, self.shift_proj(x).sigmoid().to(kv.dtype).unsqueeze(-1))
        k, v = kv.split(self.kv_heads, dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v, new_last
