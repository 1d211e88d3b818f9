"""The softmax family: attention over everything before a token, and over a sliding window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .interface import Mixer, MixerCard
from .layers import RMSNorm, ShortConvolution, apply_rotary, rotary_angles, split_heads, yarn_logit_scale
from .ops.attention import attention
from .registry import register_mixer
from .state import GrowableBuffer, MixerState

BACKENDS = ("sdpa", "flash_attn", "reference")
LOG_SCALE = 0.168  # where the learned factor of log(n) starts: about 1 / log(n) on average over the first 1,024 tokens

Positions = Literal["rope", "nope", "yarn"]
LogitScale = Literal["none", "log"]


@dataclass(frozen=True, eq=False)
class AttentionState(MixerState):
    """Keys (rotated) and values `[batch, length, kv_heads, d_head]`; the tail of the short convolution, if any."""

    keys: GrowableBuffer
    values: GrowableBuffer
    tail: Tensor | None


class _Attention(Mixer):
    """Projections, optional short convolution, optional QK-norm, rotary embedding or none, attention, projection."""

    window: int | None
    factor: float = 1.0
    trained_length: int | None = None

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        kv_heads: int | None,
        d_head: int | None,
        window: int | None,
        positions: str,
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
        if d_head < 1 or (positions != "nope" and d_head % 2):
            raise ValueError(f"d_head must be at least 1, and even for positions={positions!r}, got {d_head}")
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
            positions=positions,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            conv_size=conv_size,
            backend=backend,
            **options,
        )
        self.heads, self.kv_heads, self.d_head, self.window = heads, kv_heads, d_head, window
        self.positions, self.rope_theta, self.backend = positions, rope_theta, backend
        self.log_scale: nn.Parameter | None = None
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
        seen, reach = (buffer.values.to(q.dtype) for buffer in (keys, values)), self._reach()
        y = attention(q, *seen, window=reach, backend=self.backend)
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
        return self._scaled(q, position), k, v, tail

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


@register_mixer
class SoftmaxAttention(_Attention):
    """Causal softmax attention with grouped queries; every token stays in the state.

    heads: query heads. kv_heads: key and value heads, a divisor of heads; None: as many as heads.
    d_head: size of a head; None: `d_model / heads`.
    positions: `rope` turns queries and keys by their positions (`rope_theta`: the base of the frequencies); `nope`
    leaves them, so that causality alone tells positions (Kazemnejad et al. 2023, 2305.19466); `yarn` turns them for
    texts `factor` times longer than the `trained_length` tokens of the training (Peng et al. 2023, 2309.00071), with
    sharper attention. `extend_context` turns it on after the training.
    logit_scale: `log` multiplies the logits of a token that sees n tokens by s log(n), s being learned for each head,
    so that attention stays as sharp over a long text ("scalable softmax", Nakanishi 2025, 2501.19399); `none`.
    qk_norm: RMSNorm over the features of each query and key head, before the rotation (Henry et al. 2020, 2010.04245;
    RMS in place of the 2-norm). conv_size: a short causal convolution over the projected queries, keys and values;
    0: none. backend: of `mixers.ops.attention`. Raises `ValueError` for options that do not fit together.
    """

    train_window: int | None = None
    """In training mode, a token sees itself and the `train_window - 1` tokens before it only; None: all. Whoever trains
    sets it from step to step (the FwPKM paper, 2601.00671, trains with a window in nine steps of ten). No option, and
    without effect on states and in `eval()` mode."""

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
        positions: Positions = "rope",
        rope_theta: float = 10000.0,
        factor: float = 1.0,
        trained_length: int | None = None,
        logit_scale: LogitScale = "none",
        qk_norm: bool = False,
        conv_size: int = 0,
        backend: str = "auto",
    ) -> None:
        _check_positions(positions, factor, trained_length)
        if logit_scale not in get_args(LogitScale):
            raise ValueError(f"logit_scale must be one of {', '.join(get_args(LogitScale))}, got {logit_scale!r}")
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            window=None,
            positions=positions,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            conv_size=conv_size,
            backend=backend,
            factor=factor,
            trained_length=trained_length,
            logit_scale=logit_scale,
        )
        self.factor, self.trained_length = factor, trained_length
        if logit_scale == "log":
            self.log_scale = nn.Parameter(torch.full((heads,), LOG_SCALE))

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
        self.options.update(positions=self.positions, factor=self.factor, trained_length=self.trained_length)

    def _reach(self) -> int | None:
        return self.train_window if self.training else None


def _check_positions(positions: str, factor: float, trained_length: int | None) -> None:
    if positions not in get_args(Positions):
        raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
    if positions != "yarn" and (factor != 1 or trained_length is not None):
        raise ValueError(f"factor and trained_length belong to positions='yarn', got them with {positions!r}")
    if positions == "yarn" and not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"factor must be at least 1, how many times longer texts get, got {factor}")
    if positions == "yarn" and (trained_length is None or trained_length < 1):
        raise ValueError(f"trained_length must be the length of the training in tokens, got {trained_length}")


@register_mixer
class SlidingWindowAttention(_Attention):
    """Softmax attention over the token itself and the `window - 1` tokens before it; time and state stay bounded by it.

    positions: `rope` or `nope`; no distance is longer than the window, at any length of the text. The other options are
    those of `SoftmaxAttention`.
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
        positions: Literal["rope", "nope"] = "rope",
        rope_theta: float = 10000.0,
        qk_norm: bool = False,
        conv_size: int = 0,
        backend: str = "auto",
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 (the token itself), got {window}")
        if positions not in ("rope", "nope"):  # distances stay below the window: there is nothing to extend
            raise ValueError(f"positions must be 'rope' or 'nope', got {positions!r}")
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            window=window,
            positions=positions,
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
