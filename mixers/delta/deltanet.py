"""DeltaNet: a matrix per head that replaces what a key held instead of adding to it, and forgets nothing else."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, precision_of


@register_mixer
class DeltaNet(DeltaMixer):
    """DeltaNet (Yang et al. 2024, arXiv 2406.06484; the rule: Schlag et al. 2021, 2102.11174).

    Queries and keys pass SiLU and have length 1. negative_eigenvalues doubles beta, so that a write may also turn what
    a key held around, which state tracking needs (Grazzi et al. 2024, 2411.12537).
    """

    card = MixerCard(
        name="deltanet",
        family="delta",
        summary="Linear recurrent memory that replaces the value of a key by the delta rule, without decay",
        paper="Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
        arxiv="2406.06484",
        year=2024,
        state_growth="constant",
        recurrence="S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t",
        limits="forgets only by overwriting",
        ops=(RECURRENCE,),
    )

    output_gate: bool = option("gate what is read by SiLU(W x)", default=False)
    negative_eigenvalues: bool = option("let beta range over 0..2", default=False)

    def build(self) -> None:
        self.add_projections("silu" if self.output_gate else None)
        self.beta_proj = nn.Linear(self.d_model, self.heads, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        beta = self.beta_proj(x).to(precision_of(x)).sigmoid()
        return self.recur(
            x,
            state,
            conv,
            return_state,
            queries=unit_length(q),
            keys=unit_length(k),
            values=v,
            beta=2 * beta if self.negative_eigenvalues else beta,
        )
