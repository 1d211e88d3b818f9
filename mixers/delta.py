"""Mixers with a delta-rule memory: a matrix per head that replaces what a key held instead of adding to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Mixer, MixerCard
from .layers import ShortConvolution, split_heads
from .ops.delta import gated_delta_rule
from .registry import register_mixer
from .state import MixerState


@dataclass(frozen=True, eq=False)
class GatedDeltaNetState(MixerState):
    """memory `[batch, heads, d_head, d_v]`; tail: of the short convolution, None without one."""

    memory: Tensor
    tail: Tensor | None


@register_mixer
class GatedDeltaNet(Mixer):
    """Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464).

    heads: number of memories. d_head: length of their keys, None means `d_model // heads`. expand_v: length of their
    values, in multiples of d_head. conv_size: tokens seen by the short convolution over queries, keys and values, 0 for
    none. chunk_size: tokens computed at once, changes the speed only. output_gate: gate what is read by SiLU(W x).
    """

    card = MixerCard(
        name="gated_deltanet",
        family="delta",
        summary="Linear recurrent memory that decays by a gate and replaces values by the delta rule",
        paper="Yang et al., Gated Delta Networks: Improving Mamba2 with Delta Rule",
        arxiv="2412.06464",
        year=2024,
        state_growth="constant",
        backends=("torch", "fla", "reference"),
    )

    def __init__(
        self,
        d_model: int,
        heads: int = 4,
        d_head: int | None = None,
        expand_v: float = 1.0,
        conv_size: int = 4,
        chunk_size: int = 64,
        output_gate: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            d_model,
            heads=heads,
            d_head=d_head,
            expand_v=expand_v,
            conv_size=conv_size,
            chunk_size=chunk_size,
            output_gate=output_gate,
            backend=backend,
        )
        self.heads, self.chunk_size, self.backend = heads, chunk_size, backend
        self.d_k, self.d_v = _head_sizes(d_model, heads, d_head, expand_v)
        if conv_size < 0 or chunk_size < 1:
            raise ValueError(f"conv_size must be >= 0 and chunk_size >= 1, got {conv_size} and {chunk_size}")

        width = heads * (2 * self.d_k + self.d_v)
        self.qkv = nn.Linear(d_model, width, bias=False)
        self.conv = ShortConvolution(width, conv_size, activation="silu") if conv_size else None
        self.beta = nn.Linear(d_model, heads, bias=False)
        self.decay = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = nn.RMSNorm(self.d_v, eps=1e-5)
        self.gate = nn.Linear(d_model, heads * self.d_v, bias=False) if output_gate else None
        self.out = nn.Linear(heads * self.d_v, d_model, bias=False)
        self._reset_decay()

    @torch.no_grad()
    def _reset_decay(self) -> None:
        """As Mamba-2: A uniform in 1..16, and dt_bias such that softplus(dt_bias) is log-uniform in 0.001..0.1."""
        self.A_log.uniform_(1, 16).log_()
        dt = torch.empty_like(self.dt_bias).uniform_(-3, -1)
        dt = 10**dt
        self.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())

    def mix(
        self, x: Tensor, state: GatedDeltaNetState | None, return_state: bool
    ) -> tuple[Tensor, GatedDeltaNetState | None]:
        qkv, tail = self.qkv(x), None
        if self.conv is None:
            qkv = F.silu(qkv)
        else:
            qkv, tail = self.conv(qkv, None if state is None else state.tail)
        key_width = self.heads * self.d_k
        q, k, v = (
            split_heads(part, self.heads) for part in qkv.split([key_width, key_width, self.out.in_features], -1)
        )

        precision = torch.promote_types(x.dtype, torch.float32)
        rate = F.softplus(self.decay(x).to(precision) + self.dt_bias.to(precision))
        read, memory = gated_delta_rule(
            _unit_length(q.to(precision)),
            _unit_length(k.to(precision)),
            v,
            -self.A_log.to(precision).exp() * rate,
            self.beta(x).to(precision).sigmoid(),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.norm(read.to(self.norm.weight.dtype)).flatten(2)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        y = self.out(y).to(x.dtype)
        if memory is None:
            return y, None
        position = x.shape[1] + (0 if state is None else state.position)
        return y, GatedDeltaNetState(self.signature, x.shape[0], position, memory, tail)


def _head_sizes(d_model: int, heads: int, d_head: int | None, expand_v: float) -> tuple[int, int]:
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    if d_head is None:
        if d_model % heads:
            raise ValueError(f"d_model {d_model} is not a multiple of heads {heads}: set d_head, or change heads")
        d_head = d_model // heads
    d_v = round(expand_v * d_head)
    if d_head < 1 or d_v < 1 or d_v != expand_v * d_head:
        raise ValueError(
            f"d_head and expand_v * d_head must be whole numbers >= 1, got {d_head} and {expand_v * d_head}"
        )
    return d_head, d_v


def _unit_length(x: Tensor) -> Tensor:
    # eps inside the root keeps the gradient of a zero vector finite
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
