"""Gated linear attention: every channel of a key forgets by a gate that the token sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, LowRank, head_size, split_heads, value_size
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


@register_mixer
class GatedLinearAttention(Mixer):
    """Gated linear attention, GLA (Yang et al. 2023, arXiv 2312.06635, section 4).

    The decay of each key channel is sigmoid(W2 W1 x + b)^(1 / 16), through a bottleneck of 16. What is read is
    normalised for each head and gated by SiLU(W x). As in the authors' library the norm is RMSNorm where the paper has
    LayerNorm, and queries are divided by sqrt(d_head), which the norm cancels.
    """

    card = MixerCard(
        name="gla",
        family="linear",
        summary="Linear attention whose memory decays by a learned gate per key channel",
        paper="Yang et al., Gated Linear Attention Transformers with Hardware-Efficient Training",
        arxiv="2312.06635",
        year=2023,
        state_growth="constant",
        recurrence="S_t = diag(alpha_t) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  alpha_t = sigmoid(W x_t + b)^(1/16)",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries and keys; None: d_model / heads / 2", default=None, least=1, small=8)
    expand_v: float = option("length of values, in multiples of d_head", default=2.0, above=0)
    gate_rank: int = option("rank of the map from a token to its decays", default=16, least=1, small=4)
    gate_temperature: float = option("the logarithms of the decays are divided by it", default=16.0, above=0)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, 2 * self.heads, self.d_head)
        d_v = value_size(self.d_head, self.expand_v)
        self.sizes = [self.heads * size for size in (self.d_head, self.d_head, d_v)]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.decay_proj = LowRank(self.d_model, self.gate_rank, self.sizes[0])
        self.output = GatedOutput(self.d_model, self.heads, d_v, gate="silu")

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv_proj(x).split(self.sizes, dim=-1))
        gate = split_heads(self.decay_proj(x), self.heads).to(torch.promote_types(x.dtype, torch.float32))
        read, memory = linear_recurrence(
            q,
            k,
            v,
            log_decay=F.logsigmoid(gate) / self.gate_temperature,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None
