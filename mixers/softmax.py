"""The softmax family: attention over everything before a token, and over a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .interface import Mixer, MixerCard
from .layers import RMSNorm, ShortConvolution, apply_rotary, rotary_angles, split_heads
from .ops.attention import attention
from .registry import register_mixer
from .state import GrowableBuffer, MixerState

BACKENDS = ("sdpa", "flash_attn", "reference")


@dataclass(frozen=True, eq=False)
class AttentionState(MixerState):
    """Keys (rotated) and values `[batch, length, kv_heads, d_head]`; the tail of the short convolution, if any."""

    keys: GrowableBuffer
    values: GrowableBuffer
    tail: Tensor | None


class _Attention(Mixer):
    """Projections, optional short convolution, optional QK-norm, optional rotary embedding, attention, projection."""

    window: int | None

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        kv_heads: int | None,
        d_head: int | None,
        window: int | None,
        rope: bool,
        rope_theta: float,
        qk_norm: bool,
        conv_size: int,
        backend: str,
        **options: Any,
    ) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, both at least 1, got {heads} and {kv_heads}")
        if d_head is None:
            if d_model % heads:
                raise ValueError(f"d_model = {d_model} is no multiple of heads = {heads}; give d_head")
            d_head = d_model // heads
        if d_head < 1 or (rope and d_head % 2):
            raise ValueError(f"d_head must be at least 1, and even for rope=True, got {d_head}")
        if rope_theta <= 0:
            raise ValueError(f"rope_theta must be positive, got {rope_theta}")
        if conv_size < 0:
            raise ValueError(f"conv_size must be at least 0 (no short convolution), got {conv_size}")
        if window is not None:
            options["window"] = window
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            rope=rope,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            conv_size=conv_size,
            backend=backend,
            **options,
        )
        self.heads, self.kv_heads, self.d_head, self.window = heads, kv_heads, d_head, window
        self.rope, self.rope_theta, self.backend = rope, rope_theta, backend
        channels = (heads + 2 * kv_heads) * d_head
        self.qkv_proj = nn.Linear(d_model, channels, bias=False)
        self.conv = ShortConvolution(channels, conv_size) if conv_size else None
        self.q_norm = RMSNorm(d_head) if qk_norm else None
        self.k_norm = RMSNorm(d_head) if qk_norm else None
        self.o_proj = nn.Linear(heads * d_head, d_model, bias=False)

    def mix(self, x: Tensor, state: AttentionState | None, return_state: bool) -> tuple[Tensor, AttentionState | None]:
        batch, time = x.shape[:2]
        position = 0 if state is None else state.position
        q, k, v, tail = self._project(x, position, None if state is None else state.tail)
        if state is None:
            keys, values = GrowableBuffer.of(k), GrowableBuffer.of(v)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        y = attention(q, keys.values.to(q.dtype), values.values.to(q.dtype), window=self.window, backend=self.backend)
        y = self.o_proj(y.flatten(2))
        if not return_state:
            return y, None
        keys, values = (self._remember(buffer, fresh=state is None) for buffer in (keys, values))
        return y, AttentionState(self.signature, batch, position + time, keys, values, tail)

    def _project(self, x: Tensor, position: int, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values `[batch, time, heads or kv_heads, d_head]`, and the new tail."""
        qkv = self.qkv_proj(x)
        if self.conv is not None:
            qkv, tail = self.conv(qkv, tail)
        q, k, v = split_heads(qkv, self.heads + 2 * self.kv_heads).split([self.heads, self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            angles = rotary_angles(position, x.shape[1], self.d_head, self.rope_theta, x.device)
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        return q, k, v, tail

    def _remember(self, buffer: GrowableBuffer, fresh: bool) -> GrowableBuffer:
        """What later tokens see."""
        if self.window is not None:
            buffer = buffer.keep_last(self.window - 1)
        # a fresh buffer is a view of all projections, which a state must not keep alive
        return GrowableBuffer.of(buffer.values.clone(memory_format=torch.contiguous_format)) if fresh else buffer


@register_mixer
class SoftmaxAttention(_Attention):
    """Causal softmax attention with grouped queries; every token stays in the state.

    heads: query heads. kv_heads: key and value heads, a divisor of heads; None: as many as heads.
    d_head: size of a head; None: `d_model / heads`. rope, rope_theta: rotary embedding of queries and keys.
    qk_norm: RMSNorm over the features of each query and key head, before the rotation (Henry et al. 2020, 2010.04245;
    RMS in place of the 2-norm). conv_size: a short causal convolution over the projected queries, keys and values;
    0: none. backend: of `mixers.ops.attention`. Raises `ValueError` for sizes that do not fit together.
    """

    card: ClassVar[MixerCard] = MixerCard(
        name="softmax_attention",
        family="softmax",
        summary="Causal softmax attention over all tokens, with grouped queries and rotary embedding",
        paper="Vaswani et al., Attention Is All You Need",
        arxiv="1706.03762",
        year=2017,
        state_growth="linear",
        backends=BACKENDS,
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        d_head: int | None = None,
        rope: bool = True,
        rope_theta: float = 10000.0,
        qk_norm: bool = False,
        conv_size: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            window=None,
            rope=rope,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            conv_size=conv_size,
            backend=backend,
        )


@register_mixer
class SlidingWindowAttention(_Attention):
    """Softmax attention over the token itself and the `window - 1` tokens before it; time and state stay bounded by it.

    The other options are those of `SoftmaxAttention`.
    """

    card: ClassVar[MixerCard] = MixerCard(
        name="sliding_window_attention",
        family="softmax",
        summary="Softmax attention over the last `window` tokens: linear in time, state bounded by the window",
        paper="Beltagy et al., Longformer: The Long-Document Transformer",
        arxiv="2004.05150",
        year=2020,
        state_growth="bounded",
        backends=BACKENDS,
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        d_head: int | None = None,
        window: int = 128,
        rope: bool = True,
        rope_theta: float = 10000.0,
        qk_norm: bool = False,
        conv_size: int = 0,
        backend: str = "auto",
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 (the token itself), got {window}")
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            window=window,
            rope=rope,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            conv_size=conv_size,
            backend=backend,
        )

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        # a GrowableBuffer that keeps `count` entries allocates at most 2 * count + 16
        entries = 2 * self.options["window"] + 14
        tail = self.conv.channels * (self.conv.size - 1) if self.conv is not None else 0
        return batch * (2 * entries * self.kv_heads * self.d_head + tail) * dtype.itemsize
