"""The linear family: attention whose softmax is replaced by a product of features, with a state of constant size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Mixer, MixerCard
from .layers import RMSNorm, ShortConvolution, split_heads
from .ops.linear import linear_attention
from .registry import register_mixer
from .state import MixerState


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


@dataclass(frozen=True, eq=False)
class LinearAttentionState(MixerState):
    """What was written, `[batch, heads, d_k, d_v]` (normalised: one column more); the convolution's tail, if any."""

    memory: Tensor
    tail: Tensor | None


@register_mixer
class LinearAttention(Mixer):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236).

    heads, d_head: number of heads, and the size of their values; d_head None: `d_model / heads`.
    feature_map: of queries and keys, `elu` (elu + 1), `identity`, or `taylor` (second order, `1 + d + d^2` features).
    d_feature: size of a query and key head before the feature map; None: d_head, for `taylor` 16.
    normaliser: divide by the sum of the weights. False: RMSNorm over each head's output instead, which keeps it at the
    same scale at every position (Qin et al. 2022, arXiv 2210.10340). `identity` needs False: its weights may sum to 0.
    conv_size: a short causal convolution over the projected queries, keys and values; 0: none.
    chunk_size: tokens computed at once. backend: of `mixers.ops.linear`.
    Raises `ValueError` for options that do not fit together.
    """

    card: ClassVar[MixerCard] = MixerCard(
        name="linear_attention",
        family="linear",
        summary="Attention by products of features (elu + 1, identity or Taylor), with or without normaliser",
        paper="Katharopoulos et al., Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        arxiv="2006.16236",
        year=2020,
        state_growth="constant",
        backends=("torch", "fla", "reference"),
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 4,
        d_head: int | None = None,
        feature_map: str = "elu",
        d_feature: int | None = None,
        normaliser: bool = True,
        conv_size: int = 0,
        chunk_size: int = 64,
        backend: str = "auto",
    ) -> None:
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        if d_head is None:
            if d_model % heads:
                raise ValueError(f"d_model = {d_model} is no multiple of heads = {heads}; give d_head")
            d_head = d_model // heads
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")
        if feature_map == "identity" and normaliser:
            raise ValueError(
                "feature_map='identity' cannot be normalised: its weights q . k have either sign, and their sum may be "
                "0; give normaliser=False, or feature_map='elu' or 'taylor'"
            )
        if d_feature is None:
            d_feature = 16 if feature_map == "taylor" else d_head
        if d_head < 1 or d_feature < 1 or chunk_size < 1:
            given = f"{d_head}, {d_feature} and {chunk_size}"
            raise ValueError(f"d_head, d_feature and chunk_size must be at least 1, got {given}")
        if conv_size < 0:
            raise ValueError(f"conv_size must be at least 0 (no short convolution), got {conv_size}")
        super().__init__(
            d_model,
            heads=heads,
            d_head=d_head,
            feature_map=feature_map,
            d_feature=d_feature,
            normaliser=normaliser,
            conv_size=conv_size,
            chunk_size=chunk_size,
            backend=backend,
        )
        self.heads, self.normaliser, self.chunk_size, self.backend = heads, normaliser, chunk_size, backend
        self.features = FEATURE_MAPS[feature_map]
        self.sizes = [heads * d_feature, heads * d_feature, heads * d_head]
        self.qkv_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), conv_size) if conv_size else None
        self.o_norm = None if normaliser else RMSNorm(d_head)
        self.o_proj = nn.Linear(heads * d_head, d_model, bias=False)

    def mix(
        self, x: Tensor, state: LinearAttentionState | None, return_state: bool
    ) -> tuple[Tensor, LinearAttentionState | None]:
        batch, time = x.shape[:2]
        qkv, tail = self.qkv_proj(x), None
        if self.conv is not None:
            qkv, tail = self.conv(qkv, None if state is None else state.tail)
        q, k, v = (split_heads(t, self.heads) for t in qkv.split(self.sizes, dim=-1))
        # features in float32 at least: the sums they go into keep that precision
        precision = torch.promote_types(v.dtype, torch.float32)
        y, memory = linear_attention(
            self.features(q.to(precision)),
            self.features(k.to(precision)),
            v,
            normaliser=self.normaliser,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        if self.o_norm is not None:
            y = self.o_norm(y)
        y = self.o_proj(y.flatten(2))
        if memory is None:
            return y, None
        position = time if state is None else state.position + time
        return y, LinearAttentionState(self.signature, batch, position, memory, tail)
