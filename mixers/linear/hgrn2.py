"""HGRN2: one gate decides what is forgotten and, by what it leaves, what is written."""

from __future__ import annotations

import math

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
class HGRN2(Mixer):
    """HGRN2 (Qin et al. 2024, arXiv 2404.07904, section 3).

    The forget gate is at least a lower bound that rises with depth, so that upper layers remember longer; the key is
    one minus the gate, the query (the paper's output gate) passes SiLU. In the paper the bounds of all layers come from
    one softmax over layers. A mixer does not see the other layers: here each learns a bound of its own for every
    channel, starting at l / L in layer l of L, as the paper's do; the first layer has none. As in the authors' language
    models (fla), RMSNorm sees all heads together, and values pass no activation. The paper's heads have 128 features.
    """

    card = MixerCard(
        name="hgrn2",
        family="linear",
        summary="Gated linear recurrence: the forget gate, bounded from below by depth, makes the key as well",
        paper="Qin et al., HGRN2: Gated Linear RNNs with State Expansion",
        arxiv="2404.07904",
        year=2024,
        state_growth="constant",
        recurrence="S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,  o_t = S_t^T q_t,  f_t = b_l + (1 - b_l) sigmoid(W x_t)",
        limits="lower bounds are learned by each layer alone, so nothing keeps them rising with depth",
        ops=(RECURRENCE,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of queries, keys and values; None: d_model / heads", default=None, least=1, small=16)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        width = self.heads * self.d_head
        self.q_proj = nn.Linear(self.d_model, width, bias=False)
        self.v_proj = nn.Linear(self.d_model, width, bias=False)
        self.decay_proj = nn.Linear(self.d_model, width, bias=False)
        # the logit of the bound: sigmoid(log(l / (L - l))) = l / L
        start = math.log(self.layer / (self.n_layers - self.layer)) if self.layer else None
        self.lower_bound = None if start is None else nn.Parameter(torch.full((width,), start))
        self.o_norm = RMSNorm(width)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        keys, log_decay = self.gates(self.decay_proj(x))
        v = self.v_proj(x)
        read, memory = linear_recurrence(
            split_heads(F.silu(self.q_proj(x)), self.heads),
            split_heads(keys.to(v.dtype), self.heads),
            split_heads(v, self.heads),
            log_decay=split_heads(log_decay, self.heads),
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(self.o_norm(read.flatten(2)))
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None) if return_state else None

    def gates(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """1 - f and log f, in float32 at least."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.lower_bound is None:
            return (-raw).sigmoid(), F.logsigmoid(raw)
        bound = self.lower_bound.to(raw.dtype)
        free = F.logsigmoid(-bound)
        return free.exp() * (-raw).sigmoid(), torch.logaddexp(F.logsigmoid(bound), free + F.logsigmoid(raw))
