"""Gated DeltaProduct: several steps of the delta rule per token, so that a token can rotate the memory."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import MixerCard
from ..layers import unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of


@register_mixer
class GatedDeltaProduct(DeltaMixer):
    """Gated DeltaProduct (Siems et al. 2025, arXiv 2502.10297).

    Every token makes `steps` writes, each with a key, a value and a beta in 0..2 of its own, so that the transition of
    the memory is a product of as many generalised Householder matrices; then the memory is read once. It decays once
    per token, before the first write. The cost is that of a sequence `steps` times as long.
    """

    card = MixerCard(
        name="gated_deltaproduct",
        family="delta",
        summary="Gated delta rule with several writes per token: products of Householder matrices track states",
        paper="Siems et al., DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products",
        arxiv="2502.10297",
        year=2025,
        state_growth="constant",
        recurrence="S_t = alpha_t S_{t-1}, then for each j S_t += beta_j k_j (v_j - S_t^T k_j)^T,  o_t = S_t^T q_t",
        limits="costs as much as the gated delta rule on a sequence `steps` times as long",
        ops=(RECURRENCE,),
    )

    steps: int = option("writes per token", default=2, least=1)
    forget_gate: bool = option("let the memory decay", default=True)
    negative_eigenvalues: bool = option("let beta range over 0..2", default=True)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)

    def build(self) -> None:
        self.add_projections("silu" if self.output_gate else None, writes=self.steps)
        self.decay = MambaDecay(self.d_model, self.heads) if self.forget_gate else None
        self.beta_proj = nn.Linear(self.d_model, self.steps * self.heads, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        beta = self.beta_proj(x).to(precision_of(x)).sigmoid()
        read, memory = linear_recurrence(
            F.pad(unit_length(q)[:, :, None], (0, 0) * 2 + (self.steps - 1, 0)).flatten(1, 2),  # read after the last
            self._in_steps(unit_length(k)),
            self._in_steps(v),
            log_decay=None if self.decay is None else self._first(self.decay(x)),
            beta=self._in_steps(2 * beta if self.negative_eigenvalues else beta),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read[:, self.steps - 1 :: self.steps], x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None

    def _in_steps(self, x: Tensor) -> Tensor:
        """`[batch, time, steps * heads, ...]` -> `[batch, time * steps, heads, ...]`."""
        return x.unflatten(2, (self.steps, self.heads)).flatten(1, 2)

    def _first(self, log_decay: Tensor) -> Tensor:
        """`[batch, time, heads]` -> `[batch, time * steps, heads]`, 0 but for a token's first step."""
        return F.pad(log_decay[:, :, None], (0, 0, 0, self.steps - 1)).flatten(1, 2)
