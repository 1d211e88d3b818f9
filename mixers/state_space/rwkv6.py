"""RWKV-6: everything that is projected is a mixture of a token and the one before, in shares that both decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import HeadNorm, LowRank, head_size, split_heads, token_shift
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import MixerState

NORM_EPS = 64e-5  # of the heads' norm, in the released models


@dataclass(frozen=True, eq=False)
class ShiftedState(MixerState):
    """memory `[batch, heads, d_head, d_head]`; last: the last token `[batch, 1, d_model]`, mixed with the next."""

    memory: Tensor
    last: Tensor


@register_mixer
class RWKV6(Mixer):
    """Time mixing of RWKV-6, "Finch" (Peng et al. 2024, arXiv 2404.05892).

    Every key channel decays by exp(-exp(w)) with w from the token; a token's own write counts u for its own read. The
    queries are the paper's receptance. Weights start as in the authors' code (RWKV-LM), which depends on the place of
    the layer: outputs are 0 at first. The released models have heads of 64 features.
    """

    card = MixerCard(
        name="rwkv6",
        family="state space",
        summary="Linear recurrence with data-dependent token shift and decay per channel, and a bonus for the token",
        paper="Peng et al., Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
        arxiv="2404.05892",
        year=2024,
        state_growth="constant",
        recurrence="S_t = diag(exp(-exp(w_t))) S_{t-1} + k_t v_t^T,  o_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries, keys and values; None: d_model / heads", default=None, least=1, small=16)
    shift_rank: int = option("rank of the map to the shares of the token before", default=32, least=1, small=4)
    decay_rank: int = option("rank of the map to the decays", default=64, least=1, small=4)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        width = self.heads * self.d_head
        self.shift = nn.Parameter(torch.empty(6, self.d_model))  # first for the shares themselves, then as in `mix`
        self.shift_down = nn.Linear(self.d_model, 5 * self.shift_rank, bias=False)
        self.shift_up = nn.Parameter(torch.empty(5, self.shift_rank, self.d_model))
        self.decay_proj = LowRank(self.d_model, self.decay_rank, width, torch.tanh)
        self.bonus = nn.Parameter(torch.empty(self.heads, self.d_head))
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (
            nn.Linear(self.d_model, width, bias=False) for _ in range(4)
        )
        self.o_norm = HeadNorm(self.heads, self.d_head, eps=NORM_EPS, bias=True)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        depth, left = self.layer / max(self.n_layers - 1, 1), 1 - self.layer / self.n_layers
        share = (torch.arange(self.d_model) / self.d_model)[None] ** torch.tensor([[left]] * 4 + [[left / 2]] * 2)
        share[3] += 0.3 * depth
        self.shift.copy_(1 - share)
        nn.init.zeros_(self.shift_down.weight)
        nn.init.uniform_(self.shift_up, -0.01, 0.01)
        channel = torch.arange(self.bonus.numel())
        ramp = channel / max(self.bonus.numel() - 1, 1)
        nn.init.zeros_(self.decay_proj.down.weight)
        nn.init.uniform_(self.decay_proj.up.weight, -0.01, 0.01)
        self.decay_proj.up.bias.copy_(-6 + 5 * ramp ** (0.7 + 1.3 * depth))
        self.bonus.copy_((depth * (1 - ramp) + ((channel + 1) % 3 - 1) * 0.1).view_as(self.bonus))
        for projection, gain in ((self.q_proj, 1), (self.k_proj, 0.1), (self.v_proj, 1), (self.g_proj, 0.1)):
            nn.init.orthogonal_(projection.weight, gain)
        nn.init.zeros_(self.o_proj.weight)
        nn.init.constant_(self.o_norm.weight, ((1 + self.layer) / self.n_layers) ** 0.7)

    def mix(self, x: Tensor, state: ShiftedState | None, return_state: bool) -> tuple[Tensor, ShiftedState | None]:
        before, last = token_shift(x, None if state is None else state.last)
        to_w, to_k, to_v, to_q, to_g = self._mixtures(x, before - x)
        w = split_heads(self.decay_proj(to_w), self.heads).to(torch.promote_types(x.dtype, torch.float32))
        read, memory = linear_recurrence(
            split_heads(self.q_proj(to_q), self.heads),
            split_heads(self.k_proj(to_k), self.heads),
            split_heads(self.v_proj(to_v), self.heads),
            log_decay=-w.exp(),
            bonus=self.bonus,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(self.o_norm(read).flatten(2) * F.silu(self.g_proj(to_g)))
        return y, self.next_state(ShiftedState, x, state, memory=memory, last=last) if return_state else None

    def _mixtures(self, x: Tensor, difference: Tensor) -> list[Tensor]:
        """`x` mixed with the token before for the decay, key, value, query and gate."""
        inner = torch.tanh(self.shift_down(x + difference * self.shift[0])).unflatten(-1, (5, -1))
        shares = [inner[:, :, i] @ self.shift_up[i] + self.shift[i + 1] for i in range(5)]
        return [torch.addcmul(x, difference, share) for share in shares]
