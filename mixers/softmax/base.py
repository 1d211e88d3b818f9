"""What the mixers with softmax attention over keys and values share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..interface import Mixer
from ..layers import RMSNorm, ShortConvolution, apply_rotary, head_size, rotary_angles, split_heads, yarn_logit_scale
from ..ops.attention import attention
from ..options import option
from ..state import GrowableBuffer, MixerState


@dataclass(frozen=True, eq=False)
class AttentionState(MixerState):
    """Keys (rotated) and values `[batch, length, kv_heads, d_head]`; conv: last inputs of the short convolution."""

    keys: GrowableBuffer
    values: GrowableBuffer
    conv: Tensor | None


class KeyValueAttention(Mixer):
    """Projections, optional short convolution, optional QK-norm, rotary embedding or none, attention, projection.

    Grouped queries: Ainslie et al. 2023 (2305.13245). QK-norm: RMSNorm over the features of each query and key head,
    before the rotation (Henry et al. 2020, 2010.04245; RMS in place of the 2-norm). Positions `nope`: none, so that
    causality alone tells them (Kazemnejad et al. 2023, 2305.19466).
    """

    # Not annotated: annotated attributes count as options. Subclasses make options of what they offer.
    window = cast("int | None", None)
    positions = cast(str, "rope")
    factor = 1.0
    trained_length = cast("int | None", None)

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int | None = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int | None = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    rope_theta: float = option("base of the rotary frequencies", default=10_000.0, above=0)
    qk_norm: bool = option("normalise queries and keys head by head", default=False)
    conv_size: int = option("tokens that a convolution over q, k and v sees; 0: none", default=0, least=0)

    def build(self) -> None:
        self.kv_heads = kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if self.heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {kv_heads}")
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        if self.positions != "nope" and d_head % 2:
            raise ValueError(f"d_head must be even for positions={self.positions!r}, got {d_head}")
        self.log_scale: nn.Parameter | None = None
        channels = (self.heads + 2 * kv_heads) * d_head
        self.qkv_proj = nn.Linear(self.d_model, channels, bias=False)
        self.conv = ShortConvolution(channels, self.conv_size) if self.conv_size else None
        self.q_norm = RMSNorm(d_head) if self.qk_norm else None
        self.k_norm = RMSNorm(d_head) if self.qk_norm else None
        self.o_proj = nn.Linear(self.heads * d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: AttentionState | None, return_state: bool) -> tuple[Tensor, AttentionState | None]:
        position = 0 if state is None else state.position
        q, k, v, conv = self._project(x, position, None if state is None else state.conv)
        if state is None:
            keys, values = GrowableBuffer.of(k), GrowableBuffer.of(v)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        seen, reach = (buffer.values.to(q.dtype) for buffer in (keys, values)), self._reach()
        y = attention(q, *seen, window=reach, backend=self.backend)
        y = self.o_proj(y.flatten(2))
        if not return_state:
            return y, None
        keys, values = (self._remember(buffer, fresh=state is None) for buffer in (keys, values))
        return y, self.next_state(AttentionState, x, state, keys=keys, values=values, conv=conv)

    def _project(self, x: Tensor, position: int, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values `[batch, time, heads or kv_heads, d_head]`, and the state of the convolution."""
        qkv = self.qkv_proj(x)
        if self.conv is not None:
            qkv, conv = self.conv(qkv, conv)
        q, k, v = split_heads(qkv, self.heads + 2 * self.kv_heads).split([self.heads, self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.positions != "nope":
            angles = rotary_angles(
                position,
                x.shape[1],
                self.d_head,
                self.rope_theta,
                x.device,
                factor=self.factor,
                trained_length=self.trained_length,
            )
            q, k = apply_rotary(torch.cat([q, k], dim=2), angles).split([self.heads, self.kv_heads], 2)
        return self._scaled(q, position), k, v, conv

    def _scaled(self, q: Tensor, position: int) -> Tensor:
        """Queries times what their logits are to be multiplied by; the keys of a cache need not know of it."""
        if self.positions == "yarn":
            q = q * yarn_logit_scale(self.factor)
        if self.log_scale is not None:
            precision, reach = torch.promote_types(q.dtype, torch.float32), self._reach()
            count = torch.arange(position + 1, position + 1 + q.shape[1], device=q.device, dtype=torch.float64)
            log = (count if reach is None else count.clamp(max=reach)).log().to(precision)
            q = (q.to(precision) * log[:, None, None] * self.log_scale.to(precision)[:, None]).to(q.dtype)
        return q

    def _reach(self) -> int | None:
        """How many tokens a token sees, itself included; None: all before it."""
        return self.window

    def _remember(self, buffer: GrowableBuffer, fresh: bool) -> GrowableBuffer:
        """What later tokens see."""
        if self.window is not None:
            buffer = buffer.keep_last(self.window - 1)
        # a fresh buffer is a view of all projections, which a state must not keep alive
        return GrowableBuffer.of(buffer.values.clone(memory_format=torch.contiguous_format)) if fresh else buffer
