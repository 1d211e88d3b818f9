"""Mesa: every token solves anew for the best linear map of all keys so far to their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, ShortConvolution, head_size, split_heads, unit_length
from ..ops.ridge_regression import OP, RidgeState, ridge_regression
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@dataclass(frozen=True, eq=False)
class RegressionState(MixerState):
    """sums: the two decayed sums over keys and values; conv: last inputs of the short convolution, if any."""

    sums: RidgeState
    conv: Tensor | None


@register_mixer
class Mesa(Mixer):
    """The Mesa layer of MesaNet (von Oswald et al. 2025, arXiv 2506.05233): ridge regression at every token.

    Decay and write strength are gates per token and head, the ridge is learned per head and feature (softplus, at least
    `ridge_floor`, at first 1). Queries and keys pass a short convolution with SiLU and have length 1, values do
    neither, and what is read is normalised head by head, as in flash-linear-attention. Conjugate gradients start from
    zero and take `steps` steps, fewer only where all tokens have come down to rounding; the paper's stopping criterion,
    which saves steps on some tokens at the cost of accuracy, is left out. Gradients are those of the exact solution, as
    in the paper.
    """

    card = MixerCard(
        name="mesa",
        family="memory",
        summary="The optimal linear memory: ridge regression of values on keys, by conjugate gradients per token",
        paper="von Oswald et al., MesaNet: Sequence Modeling by Locally Optimal Test-Time Training",
        arxiv="2506.05233",
        year=2025,
        state_growth="constant",
        recurrence="H_t = g_t H_{t-1} + b_t k_t k_t^T,  G_t = g_t G_{t-1} + b_t k_t v_t^T,  "
        "o_t = G_t^T (H_t + L)^-1 q_t",
        limits="every token costs up to `steps` products with its H_t",
        ops=(OP,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int | None = option("length of a key; None: d_model / heads", default=None, least=1, small=8)
    steps: int = option("most conjugate gradient steps", default=30, least=1, small=12)
    ridge_floor: float = option("smallest ridge", default=0.25, above=0, below=1)
    conv_size: int = option("tokens that the convolution over q and k sees; 0: none", default=4, least=0)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=False)
    chunk_size: int = option("tokens computed at once", default=32, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        inner = self.heads * d_head
        self.qkv_proj = nn.Linear(self.d_model, 3 * inner, bias=False)
        self.conv = ShortConvolution(2 * inner, self.conv_size, "silu") if self.conv_size else None
        self.decay_proj, self.beta_proj = nn.Linear(self.d_model, self.heads), nn.Linear(self.d_model, self.heads)
        start = math.log(math.expm1(1 - self.ridge_floor))  # softplus(start) + ridge_floor = 1
        self.ridge = nn.Parameter(torch.full((self.heads, d_head), start))
        self.output = GatedOutput(self.d_model, self.heads, d_head, gate="silu" if self.output_gate else None)

    def mix(
        self, x: Tensor, state: RegressionState | None, return_state: bool
    ) -> tuple[Tensor, RegressionState | None]:
        inner, conv = self.heads * head_size(self.d_model, self.heads, self.d_head), None
        qk, v = self.qkv_proj(x).split([2 * inner, inner], dim=-1)
        if self.conv is None:
            qk = F.silu(qk)
        else:
            qk, conv = self.conv(qk, None if state is None else state.conv)
        q, k = split_heads(qk, 2 * self.heads).chunk(2, dim=2)
        precision = torch.promote_types(x.dtype, torch.float32)
        read, sums = ridge_regression(
            unit_length(q),
            unit_length(k),
            split_heads(v, self.heads),
            log_decay=F.logsigmoid(self.decay_proj(x).to(precision)),
            beta=self.beta_proj(x).to(precision).sigmoid(),
            ridge=F.softplus(self.ridge.to(precision)) + self.ridge_floor,
            steps=self.steps,
            chunk_size=self.chunk_size,
            state=None if state is None else state.sums,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RegressionState, x, state, sums=sums, conv=conv) if return_state else None
