"""Softmax attention whose output is gated feature by feature: no head has to look at a sink in order to say nothing."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..interface import MixerCard
from ..layers import GatedOutput
from ..ops.attention import OP
from ..options import option
from ..registry import register_mixer
from .base import KeyValueAttention


@register_mixer
class GatedAttention(KeyValueAttention):
    """Gated attention (Qiu et al. 2025, arXiv 2505.06708): `o_proj(attention * sigmoid(g_proj(x)))`.

    The gate stands after the attention, one per head and feature, which the paper found best (its G1). QK-norm and
    rotary embedding of a quarter of the features are as in Qwen3-Next, with grouped queries. Its RMSNorm weights are
    stored as they are, not less 1 as there. The gate's projection starts as nn.Linear's does: at one half, nearly.
    """

    card = MixerCard(
        name="gated_attention",
        family="softmax",
        summary="Softmax attention with a sigmoid gate on every output feature, QK-norm and partial rotary embedding",
        paper="Qiu et al., Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
        arxiv="2505.06708",
        year=2025,
        state_growth="linear",
        recurrence="o_t = sigmoid(W_g x_t) * sum_{s <= t} softmax_s(q_t . k_s / sqrt(d)) v_s",
        complexity="O(T^2)",
        ops=(OP,),
    )

    qk_norm: bool = option("normalise queries and keys head by head", default=True)
    positions: Literal["rope", "nope"] = option("how positions enter", default="rope")
    rotary_fraction: float = option("share of the features that turn", default=0.25, above=0, most=1)

    def build_output(self) -> None:
        self.out = GatedOutput(self.d_model, self.heads, self.d_head, gate="sigmoid", norm=False)

    def output(self, read: Tensor, x: Tensor) -> Tensor:
        return self.out(read, x)
