"""Log-linear attention: a scalar-gated linear memory for every power of two of the past, the recent ones kept finer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution, split_heads
from ..layers.discretisation import initial_dt_bias, inner_heads
from ..ops.log_linear import OP, log_linear_attention
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from ..state_space.mamba2 import GroupedRMSNorm


@register_mixer
class LogLinearAttention(Mixer):
    """Log-linear Mamba-2 (Guo, Yang, Goel, Xing, Dao, Kim 2025, arXiv 2506.04761).

    The projections, gates and skip of Mamba-2, one memory per level of a Fenwick tree, and for every token, head and
    level a weight `softplus(L * (W x))` with L learned, with which that level is read: with weights 1 it is Mamba-2.
    The form of the weights, the defaults and the convolution without bias are those of flash-linear-attention's layer.

    levels: that layer fixes their number by the longest text, 15 for 16,384 tokens. Here the last one takes in all that
    is older, so that a text may be of any length; the state grows up to `2 ** (levels - 2)` tokens. The state's memory
    is `[batch, memories, heads, d_state, d_head]`.
    """

    card = MixerCard(
        name="log_linear_attention",
        family="linear",
        summary="Mamba-2 with a memory for every power of two of the past, read with weights of their own",
        paper="Guo et al., Log-Linear Attention",
        arxiv="2506.04761",
        year=2025,
        state_growth="logarithmic",
        recurrence="o_t = sum_l lambda_t^l (S_t^l)^T q_t,  S_t^l: decayed sum of k v^T over the tokens of level l",
        complexity="O(T log T)",
        ops=(OP,),
    )

    expand: int = option("width inside, in multiples of d_model", default=2, least=1)
    d_head: int = option("size of a head's values; None: 64, or fewer that divide", default=None, least=1, small=16)
    d_state: int = option("length of a memory's keys", default=128, least=1, small=16)
    groups: int = option("sets of keys and queries that heads share", default=1, least=1)
    levels: int = option("levels with a weight and a memory of their own", default=15, least=3, small=6)
    conv_size: int = option("tokens that the short convolution sees", default=4, least=1)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        width, self.d_head, self.heads = inner_heads(self.d_model, self.expand, self.d_head, self.groups)
        self.sizes = [width, self.groups * self.d_state, self.groups * self.d_state]
        self.vkq_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), self.conv_size, "silu")
        self.decay_proj = nn.Linear(self.d_model, self.heads, bias=False)
        self.level_proj = nn.Linear(self.d_model, self.heads * self.levels)
        self.g_proj = nn.Linear(self.d_model, width, bias=False)
        self.o_norm = GroupedRMSNorm(width, self.groups)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.A_log = nn.Parameter(torch.arange(1.0, self.heads + 1).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.L = nn.Parameter(torch.ones(self.heads, self.levels))

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        vkq, conv = self.conv(self.vkq_proj(x), None if state is None else state.conv)
        v, k, q = vkq.split(self.sizes, dim=-1)
        v, k, q = split_heads(v, self.heads), split_heads(k, self.groups), split_heads(q, self.groups)

        precision = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.decay_proj(x).to(precision) + self.dt_bias.to(precision))
        scales = F.softplus(self.L.to(precision) * split_heads(self.level_proj(x), self.heads).to(precision))
        read, memory = log_linear_attention(
            q,
            k,
            (v * step.unsqueeze(-1)).to(v.dtype),
            -self.A_log.to(precision).exp() * step,
            scales,
            position=0 if state is None else state.position,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        read = (read + self.D.to(precision)[:, None] * v).flatten(2)
        y = self.o_norm(read * F.silu(self.g_proj(x).to(precision))).to(self.o_proj.weight.dtype)
        y = self.o_proj(y).to(x.dtype)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
