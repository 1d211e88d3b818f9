"""Gated DeltaNet: a matrix per head that decays by a gate and replaces what a key held instead of adding to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, ShortConvolution, head_size, split_heads, unit_length
from ..ops.recurrence import OP, linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


@register_mixer
class GatedDeltaNet(Mixer):
    """Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464).

    Queries and keys have length 1; queries, keys and values pass a short convolution with SiLU. What is read is
    normalised head by head. Raises `ValueError` for sizes that are no whole numbers.
    """

    card = MixerCard(
        name="gated_deltanet",
        family="delta",
        summary="Linear recurrent memory that decays by a gate and replaces values by the delta rule",
        paper="Yang et al., Gated Delta Networks: Improving Mamba2 with Delta Rule",
        arxiv="2412.06464",
        year=2024,
        state_growth="constant",
        recurrence="S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t",
        ops=(OP,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of a memory's keys; None: d_model / heads", default=None, least=1, small=16)
    expand_v: float = option("length of a memory's values, in multiples of d_head", default=1.0, above=0)
    conv_size: int = option("tokens that the short convolution sees; 0: none", default=4, least=0)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)

    def build(self) -> None:
        self.d_head = d_k = head_size(self.d_model, self.heads, self.d_head)
        d_v = round(self.expand_v * d_k)
        if d_v < 1 or d_v != self.expand_v * d_k:
            raise ValueError(f"expand_v * d_head must be a whole number of at least 1, got {self.expand_v * d_k}")
        self.sizes = [self.heads * d_k, self.heads * d_k, self.heads * d_v]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), self.conv_size, "silu") if self.conv_size else None
        self.beta_proj = nn.Linear(self.d_model, self.heads, bias=False)
        self.decay_proj = nn.Linear(self.d_model, self.heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.output = GatedOutput(self.d_model, self.heads, d_v, gate="silu" if self.output_gate else None)
        self._reset_decay()

    @torch.no_grad()
    def _reset_decay(self) -> None:
        """As Mamba-2: A uniform in 1..16, and dt_bias such that softplus(dt_bias) is log-uniform in 0.001..0.1."""
        self.A_log.uniform_(1, 16).log_()
        dt = torch.empty_like(self.dt_bias).uniform_(-3, -1)
        dt = 10**dt
        self.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        qkv, conv = self.qkv_proj(x), None
        if self.conv is None:
            qkv = F.silu(qkv)
        else:
            qkv, conv = self.conv(qkv, None if state is None else state.conv)
        q, k, v = (split_heads(part, self.heads) for part in qkv.split(self.sizes, dim=-1))

        precision = torch.promote_types(x.dtype, torch.float32)
        rate = F.softplus(self.decay_proj(x).to(precision) + self.dt_bias.to(precision))
        read, memory = linear_recurrence(
            unit_length(q.to(precision)),
            unit_length(k.to(precision)),
            v,
            log_decay=-self.A_log.to(precision).exp() * rate,
            beta=self.beta_proj(x).to(precision).sigmoid(),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
