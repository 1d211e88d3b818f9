"""Softmax attention whose positions are reflections that the tokens between key and query choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, ShortConvolution, head_size, split_heads, unit_length
from ..ops.path_attention import OP, PathCache, path_attention
from ..options import option
from ..registry import register_mixer
from ..state import MixerState
from .base import key_value_heads


@dataclass(frozen=True, eq=False)
class PathState(MixerState):
    """cache: see `PathCache`; conv: last inputs of the short convolution, if any."""

    cache: PathCache
    conv: Tensor | None


@register_mixer
class PathAttention(Mixer):
    """PaTH attention (Yang et al. 2025, arXiv 2505.16381).

    Between key and query stand the matrices `I - beta_r w_r w_r^T` of the tokens after the key: directions w of length
    1 from a projection of low rank, a short convolution and SiLU, and beta in (0, 2), so that reflections are possible.
    forgetting: also the forget gate of forgetting attention (PaTH-FoX), added to the logits after their scaling.
    Sizes of the projection and the convolution are those of the authors' layer in flash-linear-attention, which has no
    QK-norm by default either. Keys in the state are float32 at least, since every chunk rewrites them.
    """

    card = MixerCard(
        name="path_attention",
        family="softmax",
        summary="Softmax attention with positions made of data-dependent Householder-like products",
        paper="Yang et al., PaTH Attention: Position Encoding via Accumulating Householder Transformations",
        arxiv="2505.16381",
        year=2025,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t} softmax_s(k_s^T H_{s+1} ... H_t q_t / sqrt(d)) v_s,  H_r = I - beta_r w_r w_r^T",
        complexity="O(T^2)",
        ops=(OP,),
    )

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    qk_norm: bool = option("normalise queries and keys head by head", default=False)
    rank: int | None = option("rank of the projection to directions; None: full", default=32, least=1, small=8)
    conv_size: int = option("tokens that a convolution over directions sees; 0: none", default=3, least=0)
    forgetting: bool = option("a forget gate per query head", default=False)
    chunk_size: int = option("tokens after which keys are rewritten", default=64, least=1, small=16, piece=True)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        width = kv_heads * d_head
        self.qkv_proj = nn.Linear(self.d_model, self.heads * d_head + 2 * width, bias=False)
        self.direction_down = nn.Linear(self.d_model, self.rank, bias=False) if self.rank is not None else None
        self.direction_proj = nn.Linear(self.rank or self.d_model, width, bias=False)
        self.conv = ShortConvolution(width, self.conv_size, activation="silu") if self.conv_size else None
        self.beta_proj = nn.Linear(self.d_model, kv_heads)
        self.decay_proj = nn.Linear(self.d_model, self.heads) if self.forgetting else None
        self.q_norm = RMSNorm(d_head) if self.qk_norm else None
        self.k_norm = RMSNorm(d_head) if self.qk_norm else None
        self.o_proj = nn.Linear(self.heads * d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: PathState | None, return_state: bool) -> tuple[Tensor, PathState | None]:
        heads = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = split_heads(self.qkv_proj(x), sum(heads)).split(heads, dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        w, beta, log_forget, conv = self._reflections(x, None if state is None else state.conv)
        y, cache = path_attention(
            q,
            k,
            v,
            w,
            beta,
            log_forget=log_forget,
            chunk_size=self.chunk_size,
            state=None if state is None else state.cache,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(y.flatten(2))
        return y, self.next_state(PathState, x, state, cache=cache, conv=conv) if return_state else None

    def _reflections(self, x: Tensor, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Directions `[batch, time, kv_heads, d_head]`, beta `[batch, time, kv_heads]`, log_forget `[batch, time,
        heads]` if there is forgetting, and the state of the convolution."""
        w = self.direction_proj(x if self.direction_down is None else self.direction_down(x))
        if self.conv is not None:
            w, conv = self.conv(w, conv)
        precision = torch.promote_types(x.dtype, torch.float32)
        w = unit_length(split_heads(w, self.kv_heads).to(precision))
        beta = 2 * self.beta_proj(x).to(precision).sigmoid()
        log_forget = None if self.decay_proj is None else F.logsigmoid(self.decay_proj(x).to(precision))
        return w, beta, log_forget, conv
