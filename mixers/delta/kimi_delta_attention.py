"""Kimi Delta Attention: the gated delta rule with a decay of its own for every channel of a key."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import GatedOutput, LowRank, unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of


@register_mixer
class KimiDeltaAttention(DeltaMixer):
    """Kimi Delta Attention, KDA (Kimi Team 2025, arXiv 2510.26692, section 3).

    Queries and keys have length 1. The maps to the decays and to the output gate, a sigmoid, go through a bottleneck as
    wide as a head's value.
    """

    card = MixerCard(
        name="kimi_delta_attention",
        family="delta",
        summary="Delta-rule memory in which every channel of a key decays by a gate of its own",
        paper="Kimi Team, Kimi Linear: An Expressive, Efficient Attention Architecture",
        arxiv="2510.26692",
        year=2025,
        state_growth="constant",
        recurrence="S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t",
        ops=(RECURRENCE,),
    )

    def build(self) -> None:
        self.add_projections()
        d_model, heads, d_v = self.d_model, self.heads, self.d_v
        bottleneck = LowRank(d_model, d_v, heads * self.d_head, bias=False)
        self.decay = MambaDecay(d_model, heads, self.d_head, bottleneck)
        self.beta_proj = nn.Linear(d_model, heads, bias=False)
        self.output = GatedOutput(d_model, heads, d_v, gate="sigmoid", gate_rank=d_v)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        read, memory = linear_recurrence(
            unit_length(q),
            unit_length(k),
            v,
            log_decay=self.decay(x),
            beta=self.beta_proj(x).to(precision_of(x)).sigmoid(),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
