"""Gated DeltaNet 2: erasing and writing have gates of their own, channel by channel."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import LowRank, split_heads, unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of


@register_mixer
class GatedDeltaNet2(DeltaMixer):
    """Gated DeltaNet-2 (arXiv 2605.22791), as released in flash-linear-attention (`fla.layers.gdn2`).

    The one gate beta of the delta rule becomes b_t, for each channel of the key that is erased, and w_t, for each
    channel of the value that is written; each key channel decays by its own gate. The maps to the decays and to the
    output gate, a sigmoid, go through a bottleneck as wide as a head's value.
    """

    card = MixerCard(
        name="gated_deltanet_2",
        family="delta",
        summary="Delta-rule memory with a decay, an erase gate and a write gate per channel",
        paper="Hatamizadeh et al., Gated DeltaNet-2: Decoupling Erase and Write in Linear Attention",
        arxiv="2605.22791",
        year=2026,
        state_growth="constant",
        recurrence="S_t = (I - k_t (b_t k_t)^T) diag(alpha_t) S_{t-1} + k_t (w_t v_t)^T,  o_t = S_t^T q_t",
        ops=(RECURRENCE,),
    )

    negative_eigenvalues: bool = option("let the erase gate range over 0..2", default=False)

    def build(self) -> None:
        self.add_projections("sigmoid", narrow=True)
        d_model, heads, d_v = self.d_model, self.heads, self.d_v
        self.decay = MambaDecay(d_model, heads, self.d_head, LowRank(d_model, d_v, heads * self.d_head, bias=False))
        self.erase_proj = nn.Linear(d_model, heads * self.d_head, bias=False)
        self.write_proj = nn.Linear(d_model, heads * d_v, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        k, log_decay = unit_length(k), self.decay(x)
        erase = split_heads(self.erase_proj(x).to(precision_of(x)).sigmoid(), self.heads)
        if self.negative_eigenvalues:
            erase = 2 * erase
        write = split_heads(self.write_proj(x).sigmoid(), self.heads)
        return self.recur(
            x,
            state,
            conv,
            return_state,
            queries=unit_length(q),
            keys=k,
            values=write.to(v.dtype) * v,
            log_decay=log_decay,
            erase=((log_decay.exp() * erase * k).to(v.dtype), None),
        )
