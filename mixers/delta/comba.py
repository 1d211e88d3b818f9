"""Comba: a delta rule whose memory and whose output are both corrected by feedback."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of


@register_mixer
class Comba(DeltaMixer):
    """Comba (Hu et al. 2025, arXiv 2506.02475): a bilinear recurrence with closed-loop control.

    p_t = b k_t is what the memory is asked for before it decays and is written, with b in 0..1 learned for each head,
    and q_t - d p_t asks what is read, with d learned for each head. Keys have length 1, and so has the corrected query.
    The authors' library normalises p by its own length too, which cancels b; here b counts. correction: where d starts;
    their code has 1 and recommends 0.02 for small models.
    """

    card = MixerCard(
        name="comba",
        family="delta",
        summary="Gated delta rule with a weaker erase, and an output that subtracts what the key asks for",
        paper="Hu et al., Comba: Improving Bilinear RNNs with Closed-loop Control",
        arxiv="2506.02475",
        year=2025,
        state_growth="constant",
        recurrence="S_t = (alpha_t - beta_t k_t p_t^T) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T (q_t - d p_t)",
        ops=(RECURRENCE,),
    )

    correction: float = option("where the weight d of the output correction starts", default=1.0)
    output_gate: bool = option("gate what is read by sigmoid(W x)", default=True)

    def build(self) -> None:
        self.add_projections("sigmoid" if self.output_gate else None)
        self.decay = MambaDecay(self.d_model, self.heads)
        self.beta_proj = nn.Linear(self.d_model, self.heads, bias=False)
        self.inner_decay = nn.Parameter(torch.ones(self.heads))
        self.D = nn.Parameter(torch.full((self.heads,), self.correction))

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        precision = precision_of(x)
        inner = self.inner_decay.to(precision).sigmoid()[:, None]
        q = unit_length(q - self.D.to(precision)[:, None] * inner * k).to(v.dtype)
        k = unit_length(k)
        beta = self.beta_proj(x).to(precision).sigmoid()
        return self.recur(
            x,
            state,
            conv,
            return_state,
            queries=q,
            keys=k,
            values=(beta[..., None] * v).to(v.dtype),
            log_decay=self.decay(x),
            erase=((beta[..., None] * inner * k).to(v.dtype), None),
        )
