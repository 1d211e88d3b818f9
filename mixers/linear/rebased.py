"""ReBased: the quadratic part of Based alone, of learned affine maps, so that a weight can be exactly 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import head_size, split_heads
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .based import quadratic_features


@register_mixer
class ReBased(Mixer):
    """ReBased linear attention (Aksenov et al. 2024, arXiv 2402.10644).

    The weight of a token is (q . k)^2, divided by the sum of all weights, where queries and keys are normalised, scaled
    and shifted by learned numbers. As in the authors' code, one LayerNorm sees the queries of all heads, another the
    keys. In their models, as in Based, the layer takes turns with short convolutions: the layout's business.
    """

    card = MixerCard(
        name="rebased",
        family="linear",
        summary="Linear attention by squares of products of normalised, shifted queries and keys",
        paper="Aksenov et al., Linear Transformers with Learnable Kernel Functions are Better In-Context Models",
        arxiv="2402.10644",
        year=2024,
        state_growth="constant",
        recurrence="o_t = sum_s (q_t . k_s)^2 v_s / sum_s (q_t . k_s)^2,  q, k = gamma LN(W x) + beta",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of values; None: d_model / heads", default=None, least=1, small=16)
    d_feature: int = option("length of queries and keys before the feature map", default=16, least=2, small=4)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        self.sizes = [self.heads * size for size in (self.d_feature, self.d_feature, self.d_head)]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(self.sizes[0]), nn.LayerNorm(self.sizes[1])
        self.o_proj = nn.Linear(self.sizes[2], self.d_model, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """`[batch, time, heads * d_feature]` to `[batch, time, heads, d_feature (d_feature + 1) / 2]`."""
        wide = split_heads(x, self.heads).to(torch.promote_types(x.dtype, torch.float32)) * self.d_feature**-0.25
        return quadratic_features(wide)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
        read, memory = linear_recurrence(
            self.features(self.q_norm(q)).to(v.dtype),  # autocast's LayerNorm is float32
            self.features(self.k_norm(k)).to(v.dtype),
            split_heads(v, self.heads),
            normaliser=True,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(read.flatten(2))
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None
