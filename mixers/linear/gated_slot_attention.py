"""Gated slot attention: softmax attention to a few slots, each a decaying average of keys and of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, head_size, split_heads
from ..ops.slot_attention import OP, slot_attention
from ..options import option
from ..registry import register_mixer
from ..softmax.base import key_value_heads
from ..state import MixerState


@dataclass(frozen=True, eq=False)
class SlotState(MixerState):
    """Keys and values of the slots, each `[batch, kv_heads, slots, d_head]`."""

    keys: Tensor
    values: Tensor


@register_mixer
class GatedSlotAttention(Mixer):
    """GSA (Zhang et al. 2024, arXiv 2409.07146): slots that forget by a gate and take in what the gate lets go.

    Queries and keys pass `feature_map`, values SiLU; what is read passes SiLU and one RMSNorm over all heads. The gate
    is `sigmoid(W x) ** (1 / damping)`, one for each slot. As in the paper there is no convolution and no positions.
    """

    card = MixerCard(
        name="gated_slot_attention",
        family="linear",
        summary="Softmax attention to a fixed number of slots, gated averages of keys and values",
        paper="Zhang et al., Gated Slot Attention for Efficient Linear-Time Sequence Modeling",
        arxiv="2409.07146",
        year=2024,
        state_growth="constant",
        recurrence="K_t = a_t K_{t-1} + (1 - a_t) k_t^T,  V_t = a_t V_{t-1} + (1 - a_t) v_t^T,  "
        "o_t = V_t^T softmax(K_t q_t)",
        ops=(OP,),
    )

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int = option("heads with slots, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    slots: int = option("slots of a head", default=64, least=1, small=8)
    feature_map: Literal["silu", "relu", "identity"] = option("of queries and keys", default="silu")
    damping: float = option("the root that is taken of gates: how slowly slots forget", default=8.0, above=0)
    chunk_size: int = option("tokens computed at once", default=32, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        self.features = {"silu": nn.SiLU(), "relu": nn.ReLU(), "identity": nn.Identity()}[self.feature_map]
        self.q_proj = nn.Linear(self.d_model, self.heads * d_head, bias=False)
        self.k_proj = nn.Linear(self.d_model, kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(self.d_model, kv_heads * d_head, bias=False)
        self.decay_proj = nn.Linear(self.d_model, kv_heads * self.slots, bias=False)
        self.o_norm = RMSNorm(self.heads * d_head)
        self.o_proj = nn.Linear(self.heads * d_head, self.d_model, bias=False)

    def mix(self, x: Tensor, state: SlotState | None, return_state: bool) -> tuple[Tensor, SlotState | None]:
        q, k = split_heads(self.q_proj(x), self.heads), split_heads(self.k_proj(x), self.kv_heads)
        v = split_heads(F.silu(self.v_proj(x)), self.kv_heads)
        precision = torch.promote_types(x.dtype, torch.float32)
        log_decay = F.logsigmoid(split_heads(self.decay_proj(x), self.kv_heads).to(precision)) / self.damping
        read, slots = slot_attention(
            self.features(q),
            self.features(k),
            v,
            -torch.expm1(log_decay),
            log_decay,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else (state.keys, state.values),
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(self.o_norm(F.silu(read).flatten(2)))
        return y, self.next_state(SlotState, x, state, keys=slots[0], values=slots[1]) if slots else None
