"""Gated DeltaNet: a matrix per head that decays by a gate and replaces what a key held instead of adding to it."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of


@register_mixer
class GatedDeltaNet(DeltaMixer):
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
        ops=(RECURRENCE,),
    )

    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)

    def build(self) -> None:
        self.add_projections("silu" if self.output_gate else None)
        self.decay = MambaDecay(self.d_model, self.heads)
        self.beta_proj = nn.Linear(self.d_model, self.heads, bias=False)

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
