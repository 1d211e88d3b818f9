"""sLSTM: a recurrent network proper, whose heads see what they put out at the token before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import BlockLinear, HeadNorm, ShortConvolution, head_size, split_heads
from ..ops.slstm import OP, slstm
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@dataclass(frozen=True, eq=False)
class SLSTMState(MixerState):
    """output, cell, normaliser, maximum `[batch, heads, d_head]`, see `mixers.ops.slstm`; conv: last inputs of the
    short convolution, if any."""

    output: Tensor
    cell: Tensor
    normaliser: Tensor
    maximum: Tensor
    conv: Tensor | None


@register_mixer
class SLSTM(Mixer):
    """The cell of sLSTM with its gates and its norm (Beck et al. 2024, arXiv 2405.04517, section 2.2 and appendix A).

    Memory is mixed within heads: the gates see the head's own last output through a matrix. Input and forget gate also
    see a short convolution with SiLU, the cell input and the output gate the token itself. As in the authors' package
    (xlstm), the forget gate is a sigmoid, the recurrent weights start at 0, the forget gates by depth, and no
    projection follows the norm: the feed-forward after it mixes the heads.
    """

    card = MixerCard(
        name="slstm",
        family="state space",
        summary="xLSTM's scalar memory: exponential input gates and gates that see the last output",
        paper="Beck et al., xLSTM: Extended Long Short-Term Memory",
        arxiv="2405.04517",
        year=2024,
        state_growth="constant",
        recurrence="c_t = f_t c_{t-1} + i_t tanh(z_t),  n_t = f_t n_{t-1} + i_t,  h_t = sigmoid(o_t) c_t / n_t",
        limits="sequential by nature: training walks token by token",
        parallel=False,
        ops=(OP,),
    )

    heads: int = option("number of heads, a divisor of d_model", default=4, least=1, small=2)
    conv_size: int = option("tokens that the short convolution sees; 0: none", default=4, least=0)

    def build(self) -> None:
        d_head = head_size(self.d_model, self.heads, None)
        self.conv = ShortConvolution(self.d_model, self.conv_size, "silu", bias=True) if self.conv_size else None
        self.i_proj, self.f_proj, self.z_proj, self.o_proj = (BlockLinear(self.heads, d_head) for _ in range(4))
        self.recurrent = nn.Parameter(torch.zeros(self.heads, d_head, 4, d_head))
        self.bias = nn.Parameter(torch.zeros(self.heads, 4, d_head))
        self.o_norm = HeadNorm(self.heads, d_head)
        for projection in (self.i_proj, self.f_proj, self.z_proj, self.o_proj):
            nn.init.normal_(projection.weight, std=math.sqrt(2 / (5 * self.d_model)))
        depth = self.layer / max(self.n_layers - 1, 1)
        with torch.no_grad():
            self.bias[:, 1] = 5 - 12 * torch.linspace(0, 1, d_head) ** (0.3 + 1.3 * depth)

    def mix(self, x: Tensor, state: SLSTMState | None, return_state: bool) -> tuple[Tensor, SLSTMState | None]:
        mixed, conv = x, None
        if self.conv is not None:
            mixed, conv = self.conv(x, None if state is None else state.conv)
        token, mixed = split_heads(x, self.heads), split_heads(mixed, self.heads)
        gates = torch.stack([self.i_proj(mixed), self.f_proj(mixed), self.z_proj(token), self.o_proj(token)], dim=3)
        read, memory = slstm(
            gates.to(torch.promote_types(x.dtype, torch.float32)) + self.bias,
            self.recurrent,
            state=None if state is None else (state.output, state.cell, state.normaliser, state.maximum),
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_norm(read).flatten(2).to(x.dtype)
        if memory is None:
            return y, None
        names = ("output", "cell", "normaliser", "maximum")
        return y, self.next_state(SLSTMState, x, state, conv=conv, **dict(zip(names, memory)))
