"""Heads, and the way out of a mixer that many share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .low_rank import LowRank
from .norm import RMSNorm

GateActivation = Literal["silu", "sigmoid"]


def head_size(d_model: int, heads: int, d_head: int | None) -> int:
    """d_head, or `d_model / heads` if it is None. Raises `ValueError` if that is no whole number."""
    if d_head is not None:
        return d_head
    if d_model % heads:
        raise ValueError(f"d_model = {d_model} is no multiple of heads = {heads}: give d_head, or change heads")
    return d_model // heads


def value_size(d_head: int, expand_v: float) -> int:
    """expand_v * d_head. Raises `ValueError` if that is no whole number."""
    d_v = round(expand_v * d_head)
    if d_v < 1 or d_v != expand_v * d_head:
        raise ValueError(f"expand_v * d_head must be a whole number of at least 1, got {expand_v * d_head}")
    return d_v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[batch, time, heads * d_head]` as `[batch, time, heads, d_head]`, a view."""
    return x.unflatten(-1, (heads, -1))


class GatedOutput(nn.Module):
    """`o_proj(norm(read) * activation(g_proj(x)))`: what the heads read, normalised head by head, gated, and projected.

    `y = out(read, x)` with `read [batch, time, heads, d_v]` and `x [batch, time, d_model]`. gate: the activation of the
    gate, None for no gate. gate_rank: of a bottleneck in front of it, None for none. norm: RMSNorm over each head's
    output, its weight shared by the heads.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_v: int,
        gate: GateActivation | None = "silu",
        norm: bool = True,
        gate_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.o_norm = RMSNorm(d_v) if norm else None
        self.g_proj: nn.Module | None = None
        if gate is not None and gate_rank is not None:
            self.g_proj = LowRank(d_model, gate_rank, heads * d_v)
        elif gate is not None:
            self.g_proj = nn.Linear(d_model, heads * d_v, bias=False)
        self.o_proj = nn.Linear(heads * d_v, d_model, bias=False)
        self.activation = {"silu": F.silu, "sigmoid": F.sigmoid, None: None}[gate]

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        y = read.to(self.o_proj.weight.dtype)
        if self.o_norm is not None:
            y = self.o_norm(y)
        y = y.flatten(2)
        if self.g_proj is not None and self.activation is not None:
            y = y * self.activation(self.g_proj(x))
        return self.o_proj(y).to(x.dtype)
