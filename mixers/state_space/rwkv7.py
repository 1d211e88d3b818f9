"""RWKV-7: a delta rule in which what is erased, what is written and how fast are separate vectors of the token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import HeadNorm, LowRank, head_size, split_heads, token_shift
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from .rwkv6 import NORM_EPS, ShiftedState

DECAY_FLOOR = -math.exp(-0.5)  # of the logarithms of decays


@register_mixer
class RWKV7(Mixer):
    """Time mixing of RWKV-7, "Goose" (Peng et al. 2025, arXiv 2503.14456).

    A key's direction kappa is erased at the in-context learning rate a, and k written, which a scales in part. Ranks
    and initial weights are those of the authors' code (RWKV-LM, x070), which depend on the place of the layer: outputs
    are 0 at first. The released models have heads of 64 features. In the paper the layers after the first mix their
    values with those of the first; a mixer sees its own input only, so here every layer is built like the first.
    """

    card = MixerCard(
        name="rwkv7",
        family="state space",
        summary="Generalised delta rule with decay per channel and an in-context learning rate",
        paper="Peng et al., RWKV-7 Goose with Expressive Dynamic State Evolution",
        arxiv="2503.14456",
        year=2025,
        state_growth="constant",
        recurrence="S_t = (diag(w_t) - (a_t * kappa_t) kappa_t^T) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t",
        limits="without the paper's value residual from the first layer, which a mixer does not see",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries, keys and values; None: d_model / heads", default=None, least=1, small=16)
    decay_rank: int = option(
        "rank of the map to the decays, and of that to the learning rates; None: 2.5 sqrt(d_model) to a multiple of 32",
        default=None,
        least=1,
        small=4,
    )
    gate_rank: int = option(
        "rank of the map to the output gate; None: 5 sqrt(d_model) to a multiple of 32", default=None, least=1, small=4
    )
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        root = math.sqrt(self.d_model)
        self.decay_rank = max(32, round(2.5 * root / 32) * 32) if self.decay_rank is None else self.decay_rank
        self.gate_rank = max(32, round(5 * root / 32) * 32) if self.gate_rank is None else self.gate_rank
        width = self.heads * self.d_head
        self.shift = nn.Parameter(torch.empty(6, self.d_model))  # as in `mix`
        self.decay_proj = LowRank(self.d_model, self.decay_rank, width, torch.tanh)
        self.rate_proj = LowRank(self.d_model, self.decay_rank, width)
        self.g_proj = LowRank(self.d_model, self.gate_rank, width, torch.sigmoid, bias=False)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(self.d_model, width, bias=False) for _ in range(3))
        self.erased_key, self.rate_share = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(self.heads, self.d_head))
        self.o_norm = HeadNorm(self.heads, self.d_head, eps=NORM_EPS, bias=True)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        depth, left = self.layer / max(self.n_layers - 1, 1), 1 - self.layer / self.n_layers
        exponents = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None] * left
        self.shift.copy_(1 - (torch.arange(self.d_model) / self.d_model) ** exponents)
        ramp = torch.linspace(0, 1, len(self.erased_key))
        wave = torch.linspace(-1, 1, self.d_head).repeat(self.heads)
        wave = wave * wave.abs()
        for low_rank in (self.decay_proj, self.rate_proj, self.g_proj):
            nn.init.zeros_(low_rank.down.weight)
            d_out, rank = low_rank.up.weight.shape
            nn.init.orthogonal_(low_rank.up.weight, 0.1 * max(1, math.sqrt(rank / d_out)))
        self.decay_proj.up.bias.copy_(-5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * wave)
        self.rate_proj.up.bias.copy_(-0.19 + 0.3 * wave + 0.4 * (ramp - 0.5))
        self.erased_key.copy_(0.71 - 0.1 * (ramp - 0.5))
        nn.init.constant_(self.rate_share, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        for projection, scale in ((self.q_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            nn.init.uniform_(projection.weight, -scale / math.sqrt(self.d_model), scale / math.sqrt(self.d_model))
        nn.init.zeros_(self.o_proj.weight)
        nn.init.constant_(self.o_norm.weight, ((1 + self.layer) / self.n_layers) ** 0.7)

    def mix(self, x: Tensor, state: ShiftedState | None, return_state: bool) -> tuple[Tensor, ShiftedState | None]:
        before, last = token_shift(x, None if state is None else state.last)
        to_q, to_w, to_k, to_v, to_a, to_g = (torch.addcmul(x, before - x, share) for share in self.shift)
        precision = torch.promote_types(x.dtype, torch.float32)
        q, v = split_heads(self.q_proj(to_q), self.heads), split_heads(self.v_proj(to_v), self.heads)
        key, rate = self.k_proj(to_k).to(precision), self.rate_proj(to_a).to(precision).sigmoid()
        erased = F.normalize(split_heads(key * self.erased_key.to(precision), self.heads), dim=-1)
        k = split_heads(key * (1 + (rate - 1) * self.rate_share.to(precision)), self.heads)
        log_decay = DECAY_FLOOR * split_heads(self.decay_proj(to_w), self.heads).to(precision).sigmoid()
        read, memory = linear_recurrence(
            q,
            k.to(v.dtype),
            v,
            log_decay=log_decay,
            erase=(erased.to(v.dtype), (-erased * split_heads(rate, self.heads)).to(v.dtype)),
            decay_floor=DECAY_FLOOR,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        own = (q * k * self.bonus).sum(-1, keepdim=True) * v
        y = self.o_proj((self.o_norm(read) + own).to(x.dtype).flatten(2) * self.g_proj(to_g))
        return y, self.next_state(ShiftedState, x, state, memory=memory, last=last) if return_state else None
