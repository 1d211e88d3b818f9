"""Lightning attention: fixed decays, quick in the first head and layer, none at all in the last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, head_size, split_heads
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


@register_mixer
class LightningAttention(Mixer):
    """Lightning attention (Qin et al. 2024, arXiv 2401.04658) as the layer of MiniMax-01 (arXiv 2501.08313) has it.

    Queries, keys and values pass SiLU; head h of H in layer l of L decays by exp(-2^(-8 (h + 1) / H) (1 - l / (L - 1)))
    a token. What all heads read is normalised together, and gated by sigmoid(W x). The paper leaves the layer to
    TransNormerLLM (arXiv 2307.14995), whose decays and activations differ from model to model; MiniMax's weights are
    public, so its choices are taken, to the 1e-5 that its code adds.
    """

    card = MixerCard(
        name="lightning_attention",
        family="linear",
        summary="Linear attention with fixed decays by head and layer, and a gated norm over all heads",
        paper="Qin et al., Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths",
        arxiv="2401.04658",
        year=2024,
        state_growth="constant",
        recurrence="S_t = exp(-slope_{h,l}) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t",
        limits="used alone it is the first layer of one: the fastest decays",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries, keys and values; None: d_model / heads", default=None, least=1, small=16)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        width = self.heads * self.d_head
        self.qkv_proj = nn.Linear(self.d_model, 3 * width, bias=False)
        self.g_proj = nn.Linear(self.d_model, width, bias=False)
        self.o_norm = RMSNorm(width)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v = (split_heads(part, self.heads) for part in F.silu(self.qkv_proj(x)).chunk(3, dim=-1))
        read, memory = linear_recurrence(
            q,
            k,
            v,
            log_decay=self.log_decay(x).expand(*x.shape[:2], -1),
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(self.o_norm(read.flatten(2)) * self.g_proj(x).sigmoid())
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None

    def log_decay(self, x: Tensor) -> Tensor:
        """Minus the slope of each head in this layer."""
        head = torch.arange(self.heads, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return -(2 ** (-8 * (head + 1) / self.heads)) * (1 - self.layer / (self.n_layers - 1 + 1e-5) + 1e-5)
