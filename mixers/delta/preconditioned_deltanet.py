"""Preconditioned DeltaNet: keys write where they have written little so far more than where they have written much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..interface import MixerCard
from ..layers import unit_length
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..ops.scan import OP as SCAN
from ..ops.scan import linear_scan
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .base import DeltaMixer, MambaDecay, precision_of

EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class PreconditionedState(RecurrentState):
    """usage `[batch, heads, d_head]`: the decayed sum of squares of what each key channel has written."""

    usage: Tensor


@register_mixer
class PreconditionedDeltaNet(DeltaMixer):
    """Preconditioned gated DeltaNet (arXiv 2604.21100), as released in flash-linear-attention.

    A diagonal estimate A of the curvature of the memory's least-squares problem, the decayed sum of squared keys,
    scales the key that writes: `k M` with `M = x^(-s)`, s being `log A` around a learned centre, squashed to -1..1.
    The key that reads what is erased stays as it is. The estimate has a decay and a beta of its own.
    """

    card = MixerCard(
        name="preconditioned_deltanet",
        family="delta",
        summary="Gated delta rule whose writing keys are scaled by a running estimate of curvature",
        paper="Tumma et al., Preconditioned DeltaNet: Curvature-aware Sequence Modeling for Linear Recurrences",
        arxiv="2604.21100",
        year=2026,
        state_growth="constant",
        recurrence="S_t = alpha_t S_{t-1} + beta_t M(A_t) k_t (v_t - alpha_t S_{t-1}^T k_t)^T,  A_t sums decayed k_t^2",
        ops=(RECURRENCE, SCAN),
    )

    squash: float = option("x: the preconditioner ranges over 1/x..x", default=1.5, above=1, most=2)
    centre: float = option("where the learned centre of log A starts", default=-0.2)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)

    def build(self) -> None:
        self.add_projections("silu" if self.output_gate else None)
        d_model, heads = self.d_model, self.heads
        self.decay, self.usage_decay = MambaDecay(d_model, heads), MambaDecay(d_model, heads)
        self.beta_proj = nn.Linear(d_model, heads, bias=False)
        self.usage_beta_proj = nn.Linear(d_model, heads, bias=False)
        self.log_centre = nn.Parameter(torch.full((heads,), self.centre))

    def mix(
        self, x: Tensor, state: PreconditionedState | None, return_state: bool
    ) -> tuple[Tensor, PreconditionedState | None]:
        q, k, v, conv = self.project(x, None if state is None else state.conv)
        k, log_decay = unit_length(k), self.decay(x)
        beta = self.beta_proj(x).to(precision_of(x)).sigmoid()
        scale, usage = self._precondition(x, k, None if state is None else state.usage, return_state)
        read, memory = linear_recurrence(
            unit_length(q),
            (scale * k).to(v.dtype),
            (beta[..., None] * v).to(v.dtype),
            log_decay=log_decay,
            erase=(((beta * log_decay.exp())[..., None] * k).to(v.dtype), None),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        if not return_state:
            return y, None
        return y, self.next_state(PreconditionedState, x, state, memory=memory, conv=conv, usage=usage)

    def _precondition(
        self, x: Tensor, k: Tensor, usage: Tensor | None, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """M `[batch, time, heads, d_head]`, and the usage after the last token."""
        k = k.to(precision_of(x))
        decay = self.usage_decay(x).exp()[..., None].expand_as(k)
        writes = self.usage_beta_proj(x).to(k.dtype).sigmoid()[..., None] * k.square()
        backend = self.backend if self.backend in SCAN.backends else "auto"
        usages, last = linear_scan(
            decay, writes, positive=True, state=usage, return_state=return_state, backend=backend
        )
        distance = (usages + EPSILON).log() - self.log_centre.to(k.dtype)[:, None]
        return torch.exp(-math.log(self.squash) * distance / (1 + distance.abs())), last
