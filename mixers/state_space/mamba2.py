"""Mamba-2: a state-space model whose decay is one number per head, which makes it linear attention with a decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution, split_heads
from ..layers.discretisation import initial_dt_bias, inner_heads, output_projection
from ..layers.norm import NORM_EPS
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


class GroupedRMSNorm(nn.Module):
    """RMSNorm over each of `groups` equal parts of the channels; `weight [channels]`."""

    def __init__(self, channels: int, groups: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., channels]` -> the same shape and dtype."""
        parts = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(x.dtype)


@register_mixer
class Mamba2(Mixer):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), as its released layer: section 7 and figure 6.

    The step size dt of a head sets both how much it forgets, exp(-A dt), and how much it writes, dt x. All heads of a
    group share B (the keys) and C (the queries). A convolution over x, B and C stands before the recurrence, and what
    is read, plus D x, is gated by SiLU before an RMSNorm over each group's channels. dt is not clamped, as in the
    release's default.
    Raises `ValueError` if expand * d_model is no multiple of d_head, or the heads none of groups.
    """

    card = MixerCard(
        name="mamba2",
        family="state space",
        summary="Selective state space with a scalar decay per head, computed as linear attention with a decay",
        paper="Dao & Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State "
        "Space Duality",
        arxiv="2405.21060",
        year=2024,
        state_growth="constant",
        recurrence="S_t = exp(-A dt_t) S_{t-1} + B_t (dt_t x_t)^T,  o_t = S_t^T C_t + D x_t",
        ops=(RECURRENCE,),
    )

    expand: int = option("channels of the recurrence, in multiples of d_model", default=2, least=1)
    d_head: int = option("channels of a head; None: 64, or fewer that divide", default=None, least=1, small=16)
    d_state: int = option("length of B and C: rows of a head's state", default=128, least=1, small=16)
    groups: int = option("sets of B and C, each shared by consecutive heads", default=1, least=1)
    conv_size: int = option("tokens that the convolution over x, B and C sees", default=4, least=1)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_inner, self.d_head, self.heads = inner_heads(self.d_model, self.expand, self.d_head, self.groups)
        keys = self.groups * self.d_state
        self.sizes = [self.d_inner, self.d_inner + 2 * keys, self.heads]
        self.in_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)  # gate; x, B and C; dt
        self.conv = ShortConvolution(self.d_inner + 2 * keys, self.conv_size, "silu", bias=True)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.o_norm = GroupedRMSNorm(self.d_inner, self.groups)
        self.o_proj = output_projection(self.d_inner, self.d_model, self.n_layers)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        gate, mixed, dt = self.in_proj(x).split(self.sizes, dim=-1)
        mixed, conv = self.conv(mixed, None if state is None else state.conv)
        keys = self.groups * self.d_state
        inputs, b, c = mixed.split([self.d_inner, keys, keys], dim=-1)

        precision = torch.promote_types(x.dtype, torch.float32)
        inputs = split_heads(inputs, self.heads)
        dt = F.softplus(dt.to(precision) + self.dt_bias.to(precision))
        read, memory = linear_recurrence(
            split_heads(c, self.groups),
            split_heads(b, self.groups),
            (dt[..., None] * inputs).to(inputs.dtype),
            log_decay=-self.A_log.to(precision).exp() * dt,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        read = (read + self.D.to(precision)[:, None] * inputs).flatten(2)
        y = self.o_norm(read * F.silu(gate.to(precision))).to(self.o_proj.weight.dtype)
        y = self.o_proj(y).to(x.dtype)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
