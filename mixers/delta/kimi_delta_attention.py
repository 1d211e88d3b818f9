"""Kimi Delta Attention: the gated delta rule with a decay of its own for every channel of a key."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import LowRank, unit_length
from ..ops.recurrence import OP as RECURRENCE
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
        paper="Kimi Team et al., Kimi Linear: An Expressive, Efficient Attention Architecture",
        arxiv="2510.26692",
        year=2025,
        state_growth="constant",
        recurrence="S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t",
        ops=(RECURRENCE,),
    )

    def build(self) -> None:
        self.add_projections("sigmoid", narrow=True)
        d_model, heads, d_v = self.d_model, self.heads, self.d_v
        bottleneck = LowRank(d_model, d_v, heads * self.d_head, bias=False)
        self.decay = MambaDecay(d_model, heads, self.d_head, bottleneck)
        self.beta_proj = nn.Linear(d_model, heads, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        return self.recur(
            x,
            state,
            conv,
            return_state,
            queries=unit_length(q),
            keys=unit_length(k),
            values=v,
            log_decay=self.decay(x),
            beta=self.beta_proj(x).to(precision_of(x)).sigmoid(),
        )
