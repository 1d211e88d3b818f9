"""Retention: every head forgets at a pace of its own, which nothing in the text changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, apply_rotary, head_size, rotary_angles, split_heads, value_size
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


@register_mixer
class Retention(Mixer):
    """Multi-scale retention (Sun et al. 2023, arXiv 2307.08621, section 2).

    Head h keeps 1 - 2^-(5 + h) of its memory at each token, and rotary angles tell positions: both together are xPos.
    What is read is normalised for each head and gated by SiLU(W x). As in the authors' code (torchscale), the norm is
    RMSNorm where the paper says GroupNorm, values are twice as long as keys, and the weights start small; its RMSNorm
    has no weight, ours has one. The angles are those of RoPE. The paper's heads have 256 features.
    """

    card = MixerCard(
        name="retention",
        family="linear",
        summary="Linear attention with rotary positions, whose heads decay at fixed, different paces",
        paper="Sun et al., Retentive Network: A Successor to Transformer for Large Language Models",
        arxiv="2307.08621",
        year=2023,
        state_growth="constant",
        recurrence="S_t = gamma_h S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  gamma_h = 1 - 2^-(5 + h)",
        limits="no head forgets by what it reads",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries and keys, even; None: d_model / heads", default=None, least=2, small=16)
    expand_v: float = option("length of values, in multiples of d_head", default=2.0, above=0)
    rope_theta: float = option("base of the rotary frequencies", default=10000.0, above=0)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        d_v = value_size(self.d_head, self.expand_v)
        if self.d_head % 2:
            raise ValueError(f"d_head must be even for rotary positions, got {self.d_head}")
        self.sizes = [self.heads * size for size in (self.d_head, self.d_head, d_v)]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.output = GatedOutput(self.d_model, self.heads, d_v, gate="silu")
        assert self.output.g_proj is not None
        for weight in (*self.qkv_proj.weight.split(self.sizes), self.output.g_proj.weight):
            nn.init.xavier_uniform_(weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.output.o_proj.weight, gain=2**-1)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv_proj(x).split(self.sizes, dim=-1))
        position = 0 if state is None else state.position
        angles = rotary_angles(position, x.shape[1], q.shape[3], self.rope_theta, x.device)
        read, memory = linear_recurrence(
            apply_rotary(q, angles),
            apply_rotary(k, angles),
            v,
            log_decay=self.log_decay(x).expand(*x.shape[:2], -1),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None

    def log_decay(self, x: Tensor) -> Tensor:
        """log(1 - 2^-(5 + h)) of each head h."""
        head = torch.arange(self.heads, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.log1p(-(2 ** -(5 + head)))
