"""Based: weights that follow the exponential function to second order, where most of softmax's mass is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import head_size, split_heads
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


def quadratic_features(x: Tensor) -> Tensor:
    """`[..., d]` to `[..., d (d + 1) / 2]`, whose products are (q . k)^2 / 2; x_i x_j and x_j x_i are one feature."""
    pairs = [x[..., i : i + 1] * x[..., i + 1 :] for i in range(x.shape[-1] - 1)]
    return torch.cat([x.square() * 0.5**0.5, *pairs], dim=-1)


@register_mixer
class Based(Mixer):
    """The linear attention of Based (Arora et al. 2024, arXiv 2402.18668, section 4.1).

    The weight of a token is 1 + s + s^2 / 2 with s = q . k / sqrt(d_feature), divided by the sum of all weights. Equal
    products are held once, so that 16 features make 153, not 273. The paper's models let it take turns with small
    sliding windows and gated convolutions: that is the layout's business.
    """

    card = MixerCard(
        name="based",
        family="linear",
        summary="Linear attention by the second-order Taylor expansion of the exponential function",
        paper="Arora et al., Simple linear attention language models balance the recall-throughput tradeoff",
        arxiv="2402.18668",
        year=2024,
        state_growth="constant",
        recurrence="S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t),  o_t = S_t^T phi(q_t) / z_t . phi(q_t)",
        limits="meant beside layers that compare neighbouring tokens precisely, such as sliding windows",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of values; None: d_model / heads", default=None, least=1, small=16)
    d_feature: int = option("length of queries and keys before the feature map", default=16, least=1, small=4)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        self.sizes = [self.heads * size for size in (self.d_feature, self.d_feature, self.d_head)]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.o_proj = nn.Linear(self.sizes[2], self.d_model, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """`[..., d_feature]` to `[..., 1 + d_feature + d_feature (d_feature + 1) / 2]`."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) * self.d_feature**-0.25
        return torch.cat([torch.ones_like(wide[..., :1]), wide, quadratic_features(wide)], dim=-1).to(x.dtype)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv_proj(x).split(self.sizes, dim=-1))
        read, memory = linear_recurrence(
            self.features(q),
            self.features(k),
            v,
            normaliser=True,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(read.flatten(2))
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None
