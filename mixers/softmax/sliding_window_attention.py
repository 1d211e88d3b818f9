"""Softmax attention over a sliding window: linear in time, and nothing older than the window is seen."""

from __future__ import annotations

from typing import Literal

import torch

from ..interface import MixerCard
from ..ops.attention import OP
from ..options import option
from ..registry import register_mixer
from .base import KeyValueAttention


@register_mixer
class SlidingWindowAttention(KeyValueAttention):
    """Softmax attention over the token itself and the `window - 1` tokens before it; time and state stay bounded by it.

    Positions need no stretching to longer texts: no distance is longer than the window. The rest: see
    `KeyValueAttention`.
    """

    card = MixerCard(
        name="sliding_window_attention",
        family="softmax",
        summary="Softmax attention over the last `window` tokens: linear in time, state bounded by the window",
        paper="Beltagy et al., Longformer: The Long-Document Transformer",
        arxiv="2004.05150",
        year=2020,
        state_growth="bounded",
        recurrence="o_t = sum_{t - w < s <= t} softmax_s(q_t . k_s / sqrt(d)) v_s",
        ops=(OP,),
    )

    window: int = option("tokens that a token sees, itself included", default=128, least=1, small=16, piece=True)
    positions: Literal["rope", "nope"] = option("how positions enter", default="rope")

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        # a GrowableBuffer that keeps `count` entries allocates at most 2 * count + 16
        entries = 2 * self.window + 14
        tail = self.conv.channels * (self.conv.size - 1) if self.conv is not None else 0
        return batch * (2 * entries * self.kv_heads * self.d_head + tail) * dtype.itemsize
