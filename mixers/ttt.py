"""Test-time training mixers: the state is a model that takes a gradient step on every mini-batch of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Mixer, MixerCard
from .layers import ShortConvolution, apply_rotary, rotary_angles, split_heads
from .ops.ttt import TTTState, ttt
from .registry import register_mixer
from .state import MixerState

ROPE_THETA = 10_000.0


@dataclass(frozen=True, eq=False)
class TTTLinearMixerState(MixerState):
    """fast: weights and gathered gradients of the inner model; tail: of the short convolution, None without one."""

    fast: TTTState
    tail: Tensor | None


@register_mixer
class TTTLinear(Mixer):
    """TTT-Linear (Sun et al. 2024, arXiv 2407.04620): an inner linear model per head, trained while it reads.

    heads: number of inner models. mini_batch_size: tokens whose inner gradients are taken at the same weights.
    inner_learning_rate: a token's step is this times a learnt gate in 0..1, over d_head. conv_size: tokens seen by the
    short convolution over queries, keys and values, 0 for none. rope: rotate queries and keys by their position in the
    mini-batch. gate: gate the output by GELU(W x).
    """

    card = MixerCard(
        name="ttt_linear",
        family="ttt",
        summary="A linear model per head as the state, trained on each mini-batch of tokens by a gradient step",
        paper="Sun et al., Learning to (Learn at Test Time): RNNs with Expressive Hidden States",
        arxiv="2407.04620",
        year=2024,
        state_growth="constant",
        backends=("chunked", "reference"),
    )

    def __init__(
        self,
        d_model: int,
        heads: int = 4,
        mini_batch_size: int = 16,
        inner_learning_rate: float = 1.0,
        conv_size: int = 4,
        rope: bool = True,
        gate: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            d_model,
            heads=heads,
            mini_batch_size=mini_batch_size,
            inner_learning_rate=inner_learning_rate,
            conv_size=conv_size,
            rope=rope,
            gate=gate,
            backend=backend,
        )
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads must divide d_model {d_model}, got {heads}")
        if mini_batch_size < 1 or conv_size < 0 or inner_learning_rate <= 0:
            raise ValueError(
                "mini_batch_size must be >= 1, conv_size >= 0 and inner_learning_rate > 0, "
                f"got {mini_batch_size}, {conv_size} and {inner_learning_rate}"
            )
        d_head = d_model // heads
        if rope and d_head % 2:
            raise ValueError(
                f"rope rotates pairs of features: d_model / heads must be even, got {d_head}; or rope=False"
            )
        self.heads, self.d_head, self.rope, self.backend = heads, d_head, rope, backend
        self.mini_batch_size, self.inner_learning_rate = mini_batch_size, inner_learning_rate

        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConvolution(3 * d_model, conv_size) if conv_size else None
        self.step = nn.Linear(d_model, heads)
        self.position_offset = nn.Parameter(torch.zeros(mini_batch_size))
        self.W1 = nn.Parameter(torch.empty(heads, d_head, d_head).normal_(0, 0.02))
        self.b1 = nn.Parameter(torch.zeros(heads, 1, d_head))
        self.inner_norm_weight = nn.Parameter(torch.ones(heads, d_head))
        self.inner_norm_bias = nn.Parameter(torch.zeros(heads, d_head))
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.gate = nn.Linear(d_model, d_model, bias=False) if gate else None
        self.out = nn.Linear(d_model, d_model, bias=False)
        nn.init.normal_(self.step.weight, std=0.02)
        nn.init.zeros_(self.step.bias)

    def position_scale(self) -> Tensor:
        """`[mini_batch_size]`: at first 1 / (i + 1), so token i reads after the mean step of tokens 0..i."""
        dtype = torch.promote_types(self.position_offset.dtype, torch.float32)
        counts = torch.arange(1, self.mini_batch_size + 1, dtype=dtype, device=self.position_offset.device)
        return (1 / counts + self.position_offset).clamp_min(0)

    def mix(
        self, x: Tensor, state: TTTLinearMixerState | None, return_state: bool
    ) -> tuple[Tensor, TTTLinearMixerState | None]:
        position = 0 if state is None else state.position
        qkv, tail = self.qkv(x), None
        if self.conv is not None:
            qkv, tail = self.conv(qkv, None if state is None else state.tail)
        q, k, v = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
        if self.rope:
            angles = self._angles(position, x.shape[1])
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)

        precision = torch.promote_types(x.dtype, torch.float32)
        read, fast = ttt(
            q,
            k,
            v,
            self.step(x).to(precision).sigmoid() * (self.inner_learning_rate / self.d_head),
            position_scale=self.position_scale(),
            norm_weight=self.inner_norm_weight,
            norm_bias=self.inner_norm_bias,
            weights=((self.W1, self.b1),),
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.norm(read.flatten(2).to(self.norm.weight.dtype))
        if self.gate is not None:
            y = y * F.gelu(self.gate(x), approximate="tanh")
        y = self.out(y).to(x.dtype)
        if fast is None:
            return y, None
        return y, TTTLinearMixerState(self.signature, x.shape[0], position + x.shape[1], fast, tail)

    def _angles(self, position: int, time: int) -> Tensor:
        """`[time, d_head / 2]`: rotations start anew with every mini-batch, so they stay small at any length."""
        device = self.W1.device
        table = rotary_angles(0, self.mini_batch_size, self.d_head, ROPE_THETA, device)
        return table[(position + torch.arange(time, device=device)) % self.mini_batch_size]
