"""mLSTM: linear attention whose tokens are weighted by exponential gates, normalised by what the weights add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import BlockLinear, HeadNorm, ShortConvolution, split_heads
from ..ops.mlstm import OP, mlstm
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@dataclass(frozen=True, eq=False)
class MLSTMState(MixerState):
    """memory `[batch, heads, d_head, d_head + 1]`, its last column the normaliser; maximum `[batch, heads]`, by whose
    exponential function both are divided; conv: last inputs of the short convolution."""

    memory: Tensor
    maximum: Tensor
    conv: Tensor


@register_mixer
class MLSTM(Mixer):
    """The block of mLSTM between its residuals (Beck et al. 2024, arXiv 2405.04517, section 2.3 and appendix A).

    The input is widened; half of it becomes queries and keys, behind a short convolution with SiLU, and values, by
    small blocks of weights; the other half gates what is read, by SiLU, after a norm for each head and a learned skip
    from the convolution. As in the authors' package (xlstm), the forget gate is a sigmoid, and the weights of both
    gates start at 0.
    """

    card = MixerCard(
        name="mlstm",
        family="state space",
        summary="xLSTM's matrix memory: exponential input gates, normalised, in a widened block",
        paper="Beck et al., xLSTM: Extended Long Short-Term Memory",
        arxiv="2405.04517",
        year=2024,
        state_growth="constant",
        recurrence="C_t = f_t C_{t-1} + i_t k_t v_t^T,  n_t likewise of k_t,  o_t = C_t^T q_t / max(|n_t . q_t|, 1)",
        limits="the block widens and gates by itself: about 6 d_model^2 parameters, more than most mixers",
        ops=(OP,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    expand: float = option("width of the block, in multiples of d_model", default=2.0, above=0)
    conv_size: int = option("tokens that the short convolution sees", default=4, least=1)
    block_size: int = option("width of the blocks that project queries, keys and values", default=4, least=1)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        width = round(self.expand * self.d_model)
        if width != self.expand * self.d_model or width % self.heads or width % self.block_size:
            raise ValueError(
                f"expand * d_model must be a multiple of heads = {self.heads} and of block_size = {self.block_size}, "
                f"got {self.expand * self.d_model}"
            )
        self.in_proj = nn.Linear(self.d_model, 2 * width, bias=False)
        self.conv = ShortConvolution(width, self.conv_size, "silu", bias=True)
        self.q_proj, self.k_proj, self.v_proj = (
            BlockLinear(width // self.block_size, self.block_size) for _ in range(3)
        )
        self.gates_proj = nn.Linear(3 * width, 2 * self.heads)
        self.o_norm = HeadNorm(self.heads, width // self.heads)
        self.skip = nn.Parameter(torch.ones(width))
        self.o_proj = nn.Linear(width, self.d_model, bias=False)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        for module in (self.in_proj, self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (5 * self.d_model)))
        nn.init.normal_(self.o_proj.weight, std=2 / self.n_layers / math.sqrt(self.d_model))
        nn.init.zeros_(self.gates_proj.weight)
        self.gates_proj.bias.copy_(torch.cat([0.1 * torch.randn(self.heads), torch.linspace(3, 6, self.heads)]))

    def mix(self, x: Tensor, state: MLSTMState | None, return_state: bool) -> tuple[Tensor, MLSTMState | None]:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        mixed, conv = self.conv(inner, None if state is None else state.conv)
        blocks, inner_blocks = (part.unflatten(-1, (-1, self.block_size)) for part in (mixed, inner))
        q, k, v = self.q_proj(blocks).flatten(2), self.k_proj(blocks).flatten(2), self.v_proj(inner_blocks).flatten(2)
        gates = self.gates_proj(torch.cat([q, k, v], dim=-1)).to(torch.promote_types(x.dtype, torch.float32))
        log_input, forget = gates.chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        read, memory = mlstm(
            q,
            k,
            v,
            log_input,
            F.logsigmoid(forget),
            chunk_size=self.chunk_size,
            state=None if state is None else (state.memory, state.maximum),
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj((self.o_norm(read).flatten(2) + self.skip * mixed) * F.silu(gate))
        if memory is None:
            return y, None
        return y, self.next_state(MLSTMState, x, state, memory=memory[0], maximum=memory[1], conv=conv)
