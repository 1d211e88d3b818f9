"""Titans: an MLP per head that memorises every token by a gradient step, with momentum and forgetting."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, ShortConvolution, head_size, split_heads, unit_length
from ..ops.titans import OP, TitansState, titans
from ..options import option
from ..registry import register_mixer
from ..state import MixerState
from ..stepping import CannotStep, ChunkedStepper, Stepper

FORGET_BIAS = -4.0  # sigmoid: 0.018 of the memory is forgotten per token at first


@dataclass(frozen=True, eq=False)
class TitansMixerState(MixerState):
    """fast: the memory's weights and their momentum; conv: last inputs of the short convolution, if any."""

    fast: TitansState
    conv: Tensor | None


@register_mixer
class Titans(Mixer):
    """The neural long-term memory of Titans as a layer by itself, LMM (Behrouz et al. 2025, arXiv 2501.00663).

    Queries, keys and values pass a short convolution and SiLU, queries and keys have length 1; what is read is
    normalised head by head and gated. The paper leaves open, and this is what was chosen: the memory is an MLP without
    biases with `depth` layers and GELU between them, one per head, its initial weights learned; step size, momentum and
    forgetting are sigmoids of a linear map of the token, one of each per head; a step is at most
    `learning_rate / max(d_head, chunk_size)`, so that a chunk of steps at the same weights does not overshoot;
    forgetting starts small, for what is forgotten does not come back. The persistent memory, tokens put in front of the
    sequence, belongs to the variants with attention and is left out.
    """

    card = MixerCard(
        name="titans",
        family="memory",
        summary="An MLP per head that is trained on every token, with momentum and forgetting",
        paper="Behrouz et al., Titans: Learning to Memorize at Test Time",
        arxiv="2501.00663",
        year=2025,
        state_growth="constant",
        recurrence="S_t = e_t S_{t-1} - s_t grad ||M(k_t) - v_t||^2,  M_t = (1 - a_t) M_{t-1} + S_t,  o_t = M_t(q_t)",
        limits="gradients are taken at the weights of the chunk's start; the state holds three copies of the MLP",
        ops=(OP,),
        parallel=False,
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int | None = option("length of a key and of a value; None: d_model / heads", default=None, least=1, small=8)
    depth: int = option("layers of a memory; 1: a linear map", default=2, least=1, most=64)
    expand: int = option("width inside a memory, in multiples of d_head", default=4, least=1, small=2)
    learning_rate: float = option("largest step, in units of 1 / max(d_head, chunk_size)", default=1.0, above=0)
    conv_size: int = option("tokens that the convolution over q, k and v sees; 0: none", default=4, least=0)
    chunk_size: int = option("tokens with gradients at the same weights", default=64, least=1, small=16, piece=True)

    def build(self) -> None:
        d_model, heads = self.d_model, self.heads
        self.d_head = d_head = head_size(d_model, heads, self.d_head)
        self.qkv_proj = nn.Linear(d_model, 3 * heads * d_head, bias=False)
        self.conv = ShortConvolution(3 * heads * d_head, self.conv_size, "silu") if self.conv_size else None
        self.step_proj, self.momentum_proj = nn.Linear(d_model, heads), nn.Linear(d_model, heads)
        self.decay_proj = nn.Linear(d_model, heads)
        nn.init.constant_(self.decay_proj.bias, FORGET_BIAS)
        widths = [d_head, *[self.expand * d_head] * (self.depth - 1), d_head]
        self.memory = nn.ParameterList(
            torch.empty(heads, d_in, d_out).normal_(0, d_in**-0.5) for d_in, d_out in itertools.pairwise(widths)
        )
        self.output = GatedOutput(d_model, heads, d_head)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        if self.backend == "reference":
            raise CannotStep("its backend 'reference' walks token by token in Python")
        return ChunkedStepper(self, self.chunk_size)

    def mix(
        self, x: Tensor, state: TitansMixerState | None, return_state: bool
    ) -> tuple[Tensor, TitansMixerState | None]:
        qkv, conv = self.qkv_proj(x), None
        if self.conv is None:
            qkv = F.silu(qkv)
        else:
            qkv, conv = self.conv(qkv, None if state is None else state.conv)
        q, k, v = split_heads(qkv, 3 * self.heads).chunk(3, dim=2)
        precision = torch.promote_types(x.dtype, torch.float32)
        largest = self.learning_rate / max(q.shape[-1], self.chunk_size)
        read, fast = titans(
            unit_length(q),
            unit_length(k),
            v,
            self.step_proj(x).to(precision).sigmoid() * largest,
            log_decay=F.logsigmoid(-self.decay_proj(x).to(precision)),
            log_momentum=F.logsigmoid(self.momentum_proj(x).to(precision)),
            weights=tuple((w,) for w in self.memory),
            chunk_size=self.chunk_size,
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(TitansMixerState, x, state, fast=fast, conv=conv) if return_state else None
