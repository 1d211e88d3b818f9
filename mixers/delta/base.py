"""What the delta-rule mixers share: the way to queries, keys and values, and decays as in Mamba-2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer
from ..layers import GateActivation, GatedOutput, ShortConvolution, head_size, split_heads, value_size
from ..layers.discretisation import initial_dt_bias
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..state import RecurrentState


class DeltaMixer(Mixer):
    """Projections and a short convolution with SiLU in front of a memory of `heads` matrices.

    Subclasses hand the gates of a token to `recur`.
    """

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int = option("length of a memory's keys; None: d_model / heads", default=None, least=1, small=16)
    expand_v: float = option("length of a memory's values, in multiples of d_head", default=1.0, above=0)
    conv_size: int = option("tokens that the short convolution sees; 0: none", default=4, least=0)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def add_projections(self, gate: GateActivation | None, *, narrow: bool = False, writes: int = 1) -> None:
        """Create `qkv_proj`, `conv` and, gated as said, `output`; writes: keys and values per token.

        narrow: the map to the gate goes through a bottleneck as wide as a head's value.
        """
        self.d_head = head_size(self.d_model, self.heads, self.d_head)
        self.d_v = value_size(self.d_head, self.expand_v)
        self.sizes = [self.heads * size for size in (self.d_head, writes * self.d_head, writes * self.d_v)]
        self.qkv_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), self.conv_size, "silu") if self.conv_size else None
        rank = self.d_v if narrow else None
        self.output = GatedOutput(self.d_model, self.heads, self.d_v, gate=gate, gate_rank=rank)

    def project(self, x: Tensor, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values `[batch, time, (writes *) heads, size]`, and the state of the convolution."""
        qkv = self.qkv_proj(x)
        if self.conv is None:
            qkv = F.silu(qkv)
        else:
            qkv, conv = self.conv(qkv, conv)
        q, k, v = qkv.split(self.sizes, dim=-1)
        q, k = (split_heads(part, part.shape[-1] // self.d_head) for part in (q, k))
        return q, k, split_heads(v, v.shape[-1] // self.d_v), conv

    def recur(
        self, x: Tensor, state: RecurrentState | None, conv: Tensor | None, return_state: bool, **inputs: Any
    ) -> tuple[Tensor, RecurrentState | None]:
        """The output for `x` and the state after it; inputs: queries, keys, values and the rest of the engine's."""
        read, memory = linear_recurrence(
            **inputs,
            chunk_size=self.chunk_size,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read, x)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None


class MambaDecay(nn.Module):
    """Log decays as in Mamba-2 (2405.21060): `-exp(A_log) * softplus(W x + dt_bias)`.

    `[batch, time, heads]`, or `[batch, time, heads, channels]` where there are channels, float32 at least. A starts
    uniform in 1..16, and softplus(dt_bias) log-uniform in 0.001..0.1. proj: the map from a token, a linear one if None.
    """

    def __init__(self, d_model: int, heads: int, channels: int | None = None, proj: nn.Module | None = None) -> None:
        super().__init__()
        self.heads, self.channels = heads, channels
        self.proj = proj if proj is not None else nn.Linear(d_model, heads * (channels or 1), bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads * (channels or 1)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.A_log.uniform_(1, 16).log_()
        self.dt_bias.copy_(initial_dt_bias(len(self.dt_bias)))

    def forward(self, x: Tensor) -> Tensor:
        precision = precision_of(x)
        steps = self.proj(x).to(precision) + self.dt_bias.to(precision)
        # softplus, whose compiled backward gets strides wrong in torch 2.13
        rate, A = -F.logsigmoid(-steps), self.A_log.to(precision).exp()
        if self.channels is None:
            return -A * rate
        return -A[:, None] * split_heads(rate, self.heads)


def precision_of(x: Tensor) -> torch.dtype:
    """Float32, or what is more exact."""
    return torch.promote_types(x.dtype, torch.float32)
