"""What the mixers with a cache of keys and values share."""

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
from ..stepping import CannotStep, Stepper, check_own
from .stepping import Cache, CacheStepper


@dataclass(frozen=True, eq=False)
class AttentionState(MixerState):
    """Keys (rotated) and values `[batch, length, kv_heads, d_head]`; conv: last inputs of the short convolution."""

    keys: GrowableBuffer
    values: GrowableBuffer
    conv: Tensor | None


class KeyValueMixer(Mixer):
    """Projections, optional short convolution, optional QK-norm, a read of all keys and values so far, projection.

    Grouped queries: Ainslie et al. 2023 (2305.13245). QK-norm: RMSNorm over the features of each query and key head
    (Henry et al. 2020, 2010.04245; RMS in place of the 2-norm). Subclasses write `read`.
    """

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    qk_norm: bool = option("normalise queries and keys head by head", default=False)
    conv_size: int = option("tokens that a convolution over q, k and v sees; 0: none", default=0, least=0)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        channels = (self.heads + 2 * kv_heads) * d_head
        self.qkv_proj = nn.Linear(self.d_model, channels, bias=False)
        self.conv = ShortConvolution(channels, self.conv_size) if self.conv_size else None
        self.q_norm = RMSNorm(d_head) if self.qk_norm else None
        self.k_norm = RMSNorm(d_head) if self.qk_norm else None
        self.build_output()

    def build_output(self) -> None:
        """Make what `output` needs."""
        self.o_proj = nn.Linear(self.heads * self.d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: AttentionState | None, return_state: bool) -> tuple[Tensor, AttentionState | None]:
        position = 0 if state is None else state.position
        q, k, v, conv = self._project(x, None if state is None else state.conv)
        q, k = self.positioned(q, k, position)
        if state is None:
            keys, values = GrowableBuffer.of(k), GrowableBuffer.of(v)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        y = self.output(self.read(q, keys.values.to(q.dtype), values.values.to(q.dtype)), x)
        if not return_state:
            return y, None
        keys, values = (self.remember(buffer, fresh=state is None) for buffer in (keys, values))
        return y, self.next_state(AttentionState, x, state, keys=keys, values=values, conv=conv)

    def positioned(self, q: Tensor, k: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys at their positions, `position` being that of the first; a tensor while decoding."""
        return q, k

    def read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries `[batch, time, heads, d_head]`, the last `time` of all tokens, read: of the same shape."""
        raise NotImplementedError

    def output(self, read: Tensor, x: Tensor) -> Tensor:
        """`[batch, time, d_model]` from what was read and the input."""
        return self.o_proj(read.flatten(2))

    def _project(self, x: Tensor, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values `[batch, time, heads or kv_heads, d_head]`, and the state of the convolution."""
        qkv = self.qkv_proj(x)
        if self.conv is not None:
            qkv, conv = self.conv(qkv, conv)
        q, k, v = split_heads(qkv, self.heads + 2 * self.kv_heads).split([self.heads, self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v, conv

    def remember(self, buffer: GrowableBuffer, fresh: bool) -> GrowableBuffer:
        """What later tokens see."""
        return own_buffer(buffer) if fresh else buffer


class KeyValueAttention(KeyValueMixer):
    """Softmax attention with rotary embedding or none, which stands after the QK-norm.

    Positions `nope`: none, so that causality alone tells them (Kazemnejad et al. 2023, 2305.19466).
    """

    # Not annotated: annotated attributes count as options. Subclasses make options of what they offer.
    window = cast("int | None", None)
    positions = cast(str, "rope")
    rotary_fraction = 1.0
    factor = 1.0
    trained_length = cast("int | None", None)

    rope_theta: float = option("base of the rotary frequencies", default=10_000.0, above=0)

    def build(self) -> None:
        super().build()
        self.log_scale: nn.Parameter | None = None
        self.sink_logits: nn.Parameter | None = None
        self.rotary_size = rotary_size(self.d_head, self.positions, self.rotary_fraction)

    def positioned(self, q: Tensor, k: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor]:
        if self.positions != "nope":
            angles = rotary_angles(
                position,
                q.shape[1],
                self.rotary_size,
                self.rope_theta,
                q.device,
                factor=self.factor,
                trained_length=self.trained_length,
            )
            q, k = rotate(torch.cat([q, k], dim=2), angles).split([self.heads, self.kv_heads], 2)
        return self._scaled(q, position), k

    def read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(q, keys, values, window=self._reach(), sinks=self.sink_logits, backend=self.backend)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        check_own(self, KeyValueAttention, "forward", "mix", "read", "decode")
        if self._reach() != self.window:
            raise CannotStep("it has a window for the training only")
        return CacheStepper(self, max_length, static, ("keys", "values"), self.window)

    def decode(
        self, x: Tensor, position: Tensor, cache: Cache, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `CachingMixer`."""
        q, k, v, conv = self._project(x, carried.get("conv"))
        q, k = self.positioned(q, k, position)
        keys, values = cache.append(k, v)
        y = self.output(cache.attend(q, keys, values, sinks=self.sink_logits), x)
        return y, {} if conv is None else {"conv": conv}

    def _scaled(self, q: Tensor, position: int | Tensor) -> Tensor:
        """Queries times what their logits are to be multiplied by; the keys of a cache need not know of it."""
        if self.positions == "yarn":
            q = q * yarn_logit_scale(self.factor)
        if self.log_scale is not None:
            precision, reach = torch.promote_types(q.dtype, torch.float32), self._reach()
            count = position + torch.arange(1, 1 + q.shape[1], device=q.device, dtype=torch.float64)
            log = (count if reach is None else count.clamp(max=reach)).log().to(precision)
            q = (q.to(precision) * log[:, None, None] * self.log_scale.to(precision)[:, None]).to(q.dtype)
        return q

    def _reach(self) -> int | None:
        """How many tokens a token sees, itself included; None: all before it."""
        return self.window

    def remember(self, buffer: GrowableBuffer, fresh: bool) -> GrowableBuffer:
        return super().remember(buffer if self.window is None else buffer.keep_last(self.window - 1), fresh)


def key_value_heads(heads: int, kv_heads: int | None) -> int:
    """kv_heads, or heads if it is None. Raises `ValueError` unless it divides heads."""
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
    return kv_heads


def rotary_size(d_head: int, positions: str, fraction: float = 1.0) -> int:
    """How many features of a head are rotated. Raises `ValueError` unless they are pairs."""
    if positions == "nope":
        return 0
    size = round(d_head * fraction)
    if size < 2 or size % 2 or abs(size - d_head * fraction) > 1e-6:
        share = "d_head" if fraction == 1 else f"rotary_fraction = {fraction:g} of d_head"
        raise ValueError(f"{share} must be even for positions={positions!r}, got {d_head * fraction:g}")
    return size


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """`apply_rotary` to as many of the first features of `x [batch, time, heads, d_head]` as there are angles for."""
    size = 2 * angles.shape[1]
    if size == x.shape[-1]:
        return apply_rotary(x, angles)
    return torch.cat([apply_rotary(x[..., :size], angles), x[..., size:]], dim=-1)


def own_buffer(buffer: GrowableBuffer) -> GrowableBuffer:
    """A copy for a state: a fresh buffer is a view of all projections, which a state must not keep alive."""
    return GrowableBuffer.of(buffer.values.clone(memory_format=torch.contiguous_format))
