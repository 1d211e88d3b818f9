"""Linear attention: the softmax is replaced by a product of features, so that the past fits in one matrix per head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, ShortConvolution, head_size, split_heads
from ..ops.recurrence import OP, linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1 (Katharopoulos et al. 2020, eq. 7), positive; written so that exp(x) keeps its digits below 0."""
    return F.relu(x) + x.clamp(max=0).exp()


def identity_features(x: Tensor) -> Tensor:
    """The features are `x` itself."""
    return x


def taylor_features(x: Tensor) -> Tensor:
    """`[..., d]` to `[..., 1 + d + d * d]`, whose products are 1 + s + s^2 / 2 >= 1/2 with s = q . k / sqrt(d).

    The second-order Taylor expansion of exp(s) (Arora et al. 2024, arXiv 2402.18668, section 4.1).
    """
    x = x * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, squares], dim=-1)


FEATURE_MAPS = {"elu": elu_features, "identity": identity_features, "taylor": taylor_features}


@register_mixer
class LinearAttention(Mixer):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236).

    feature_map: elu + 1, the identity, or `taylor`, of second order with `1 + d + d^2` features.
    Without normaliser, RMSNorm over each head's output keeps it at the same scale at every position (Qin et al. 2022,
    arXiv 2210.10340). The identity cannot be normalised: its weights q . k may sum to 0.
    Raises `ValueError` for options that do not fit together.
    """

    card = MixerCard(
        name="linear_attention",
        family="linear",
        summary="Attention by products of features (elu + 1, identity or Taylor), with or without normaliser",
        paper="Katharopoulos et al., Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        arxiv="2006.16236",
        year=2020,
        state_growth="constant",
        recurrence="S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t),  o_t = S_t^T phi(q_t) / z_t . phi(q_t)",
        ops=(OP,),
    )

    heads: int = option("number of heads", default=4, least=1, small=2)
    d_head: int = option("size of a head's values; None: d_model / heads", default=None, least=1, small=16)
    feature_map: Literal["elu", "identity", "taylor"] = option("of queries and keys", default="elu")
    d_feature: int = option(
        "size of a query and key head before the feature map; None: d_head, for taylor 16", default=None, least=1
    )
    normaliser: bool = option("divide by the sum of the weights; False: RMSNorm instead", default=True)
    conv_size: int = option("tokens that a convolution over q, k and v sees; 0: none", default=0, least=0)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        if self.feature_map == "identity" and self.normaliser:
            raise ValueError(
                "feature_map='identity' cannot be normalised: its weights q . k have either sign, and their sum may be "
                "0; give normaliser=False, or feature_map='elu' or 'taylor'"
            )
        if self.d_feature is None:
            self.d_feature = 16 if self.feature_map == "taylor" else self.d_head
        self.features = FEATURE_MAPS[self.feature_map]
        self.sizes = [self.heads * self.d_feature, self.heads * self.d_feature, self.heads * self.d_head]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), self.conv_size) if self.conv_size else None
        self.o_norm = None if self.normaliser else RMSNorm(self.d_head)
        self.o_proj = nn.Linear(self.heads * self.d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        qkv, conv = self.qkv_proj(x), None
        if self.conv is not None:
            qkv, conv = self.conv(qkv, None if state is None else state.conv)
        q, k, v = (split_heads(t, self.heads) for t in qkv.split(self.sizes, dim=-1))
        precision = torch.promote_types(v.dtype, torch.float32)
        y, memory = linear_recurrence(
            self.features(q.to(precision)).to(v.dtype),
            self.features(k.to(precision)).to(v.dtype),
            v,
            normaliser=self.normaliser,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        if self.o_norm is not None:
            y = self.o_norm(y)
        y = self.o_proj(y.flatten(2))
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
