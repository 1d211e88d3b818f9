"""Mamba-3: a state space that rotates, so that it can count, with a second-order rule for what enters it."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, split_heads
from ..layers.discretisation import initial_dt_bias, inner_heads, output_projection
from ..ops.recurrence import OP as RECURRENCE
from ..ops.recurrence import linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import MixerState

A_FLOOR = 1e-4  # every head forgets a little


@dataclasses.dataclass(frozen=True, eq=False)
class Mamba3State(MixerState):
    """memory `[batch, heads, d_state, d_head]`; angle `[batch, heads, n_angles]`, by which keys are turned; of the
    last token, part of whose write is still to come, key `[batch, heads, rank, d_state]` (turned) and value
    `[batch, heads, d_head]`."""

    memory: Tensor
    angle: Tensor
    key: Tensor
    value: Tensor


@register_mixer
class Mamba3(Mixer):
    """Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569), as its released layer.

    Three things are new against Mamba-2, and its convolution and norm before the output are gone:
    what enters is integrated by a trapezoid whose weight lambda the token chooses, so that a token's write is spread
    over its own step and the next; the state is complex, which is done by turning B and C by angles that add up over
    the tokens; and the state may have several inputs and outputs (MIMO). B and C pass an RMSNorm and get a bias per
    head. The decay depends on the token: A = -softplus, at most -1e-4.
    The angles per unit of dt are pi tanh(a), as the released kernels have them; the first `rope_fraction` of the
    d_state channels are turned, in neighbouring pairs. (The release's MIMO kernel pairs channels by halves instead,
    which is the same after a permutation of B's and C's channels.) Its optional norm before the output projection,
    meant for hybrid models, is left out.
    mimo_rank r: r columns of B and C per token; values, gate and output are scaled per rank and channel. Reading costs
    r^2 times as much, the state stays as large.
    Raises `ValueError` if expand * d_model is no multiple of d_head, the heads none of groups, or no channel is turned.
    """

    card = MixerCard(
        name="mamba3",
        family="state space",
        summary="Mamba with a complex (turning) state, a trapezoidal write and optionally several inputs and outputs",
        paper="Lahoti et al., Mamba-3: Improved Sequence Modeling using State Space Principles",
        arxiv="2603.15569",
        year=2026,
        state_growth="constant",
        recurrence="S_t = a_t S_{t-1} + (1 - lambda_t) dt_t a_t k_{t-1} x_{t-1}^T + lambda_t dt_t k_t x_t^T,  "
        "o_t = S_t^T q_t + D x_t,  k and q: B and C turned by sum dt theta",
        ops=(RECURRENCE,),
    )

    expand: int = option("channels of the recurrence, in multiples of d_model", default=2, least=1)
    d_head: int = option("channels of a head; None: 64, or fewer that divide", default=None, least=1, small=16)
    d_state: int = option("length of B and C: rows of a head's state", default=128, least=2, small=16)
    groups: int = option("sets of B and C, each shared by consecutive heads", default=1, least=1)
    rope_fraction: float = option("share of B's and C's channels that turn", default=0.5, above=0, most=1)
    mimo_rank: int = option("inputs and outputs of a head's state; 1: plain", default=1, least=1)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.d_inner, self.d_head, self.heads = inner_heads(self.d_model, self.expand, self.d_head, self.groups)
        self.n_angles = int(self.rope_fraction * self.d_state) // 2
        if not self.n_angles:
            raise ValueError(f"rope_fraction = {self.rope_fraction} of d_state = {self.d_state} is not one pair")
        keys = self.mimo_rank * self.groups * self.d_state
        # gate, x, B, C, dt, A, lambda, angles
        self.sizes = [self.d_inner, self.d_inner, keys, keys, self.heads, self.heads, self.heads, self.n_angles]
        self.in_proj = nn.Linear(self.d_model, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.B_norm, self.C_norm = RMSNorm(self.d_state), RMSNorm(self.d_state)
        self.B_bias = nn.Parameter(torch.ones(self.heads, self.mimo_rank, self.d_state))
        self.C_bias = nn.Parameter(torch.ones(self.heads, self.mimo_rank, self.d_state))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.o_proj = output_projection(self.d_inner, self.d_model, self.n_layers)
        if self.mimo_rank > 1:
            each = torch.ones(self.heads, self.mimo_rank, self.d_head)
            self.mimo_x = nn.Parameter(each / self.mimo_rank)
            self.mimo_z = nn.Parameter(each.clone())
            self.mimo_o = nn.Parameter(each / self.mimo_rank)

    def mix(self, x: Tensor, state: Mamba3State | None, return_state: bool) -> tuple[Tensor, Mamba3State | None]:
        precision = torch.promote_types(x.dtype, torch.float32)
        projected = self.in_proj(x)
        gate, value, b, c, dt, a, trapezoid, angle = (
            part.to(precision) for part in projected.split(self.sizes, dim=-1)
        )
        value, gate = split_heads(value, self.heads), split_heads(gate, self.heads)
        dt = F.softplus(dt + self.dt_bias.to(precision))
        log_decay = -F.softplus(a).clamp(min=A_FLOOR) * dt
        angle = self._angles(angle, dt, state)
        q = _turn(self._per_head(c, self.C_norm, self.C_bias), angle)
        k = _turn(self._per_head(b, self.B_norm, self.B_bias), angle)

        now, late = trapezoid.sigmoid() * dt, (1 - trapezoid.sigmoid()) * dt
        read, memory = self._recur(q, k, value, now, late, log_decay, projected.dtype, state, return_state)
        y = self._write_out(read, value, gate).to(self.o_proj.weight.dtype)
        y = self.o_proj(y).to(x.dtype)
        if memory is None:
            return y, None
        last = {"angle": angle[:, -1].clone(), "key": k[:, -1].clone(), "value": value[:, -1].clone()}
        return y, self.next_state(Mamba3State, x, state, memory=memory, **last)

    def _angles(self, angle: Tensor, dt: Tensor, state: Mamba3State | None) -> Tensor:
        """By how much keys and queries are turned, `[batch, time, heads, n_angles]`, the past included."""
        turned = (math.pi * angle.tanh()[:, :, None] * dt[..., None]).cumsum(1)
        turned = turned if state is None else turned + state.angle[:, None]
        return turned.remainder(2 * math.pi)

    def _per_head(self, x: Tensor, norm: RMSNorm, bias: Tensor) -> Tensor:
        """B or C, normalised, for every head: `[batch, time, heads, rank, d_state]`."""
        x = norm(x.unflatten(-1, (self.mimo_rank, self.groups, self.d_state)))
        return x.transpose(2, 3).repeat_interleave(self.heads // self.groups, dim=2) + bias.to(x.dtype)

    def _recur(
        self,
        q: Tensor,
        k: Tensor,
        value: Tensor,
        now: Tensor,
        late: Tensor,
        log_decay: Tensor,
        dtype: torch.dtype,
        state: Mamba3State | None,
        return_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What every rank reads, `[batch, time, heads, rank, d_head]`, and the memory; dtype: of what is written.

        A token's late share (of the weight late_{t+1}) is written at once with the rest, one product fewer, and
        taken off again from what the token itself reads, which must not see it yet.
        """
        ranked = self._ranked(value)
        memory, rank = None, self.mimo_rank
        if state is not None:  # the late share of the token before
            share = late[:, 0, :, None, None] * torch.einsum(
                "bhrn,bhrp->bhnp", state.key.to(k.dtype), self._ranked(state.value.to(k.dtype))
            )
            memory = state.memory + share
            # every rank writes a memory of its own; their sum is what is kept
            memory = F.pad(memory[:, :, None], (0, 0, 0, 0, 0, rank - 1)).flatten(1, 2)
        later = F.pad(late[:, 1:], (0, 0, 0, 1))
        weight = (now + later)[..., None, None]
        queries = q[:, :, :, None].expand(-1, -1, -1, rank, -1, -1)  # of every written rank, all that read
        read, memory = linear_recurrence(
            queries.flatten(2, 4).to(dtype),
            (weight * k).flatten(2, 3).to(dtype),
            ranked.flatten(2, 3).to(dtype),
            log_decay=log_decay.repeat_interleave(rank, dim=2),
            scale=1.0,
            chunk_size=self.chunk_size,
            state=memory,
            return_state=return_state,
            backend=self.backend,
        )
        read = read.unflatten(2, (self.heads, rank, rank)).sum(3)
        own = torch.einsum("bthsn,bthrn,bthrp->bthsp", q, k, ranked)
        read = read - later[..., None, None] * own
        return read, memory if memory is None else memory.unflatten(1, (self.heads, rank)).sum(2)

    def _ranked(self, value: Tensor) -> Tensor:
        """What every rank writes: `[..., heads, d_head]` -> `[..., heads, rank, d_head]`."""
        return value.unsqueeze(-2) * self.mimo_x.to(value.dtype) if self.mimo_rank > 1 else value.unsqueeze(-2)

    def _write_out(self, read: Tensor, value: Tensor, gate: Tensor) -> Tensor:
        """The skip connection, the gate, and the ranks summed up: `[batch, time, d_inner]`."""
        read = read + self.D.to(read.dtype)[:, None, None] * self._ranked(value)
        if self.mimo_rank == 1:
            return (read.squeeze(3) * F.silu(gate)).flatten(2)
        gated = read * F.silu(gate[:, :, :, None] * self.mimo_z.to(read.dtype))
        return (gated * self.mimo_o.to(read.dtype)).sum(3).flatten(2)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turn neighbouring pairs of `x [batch, time, heads, rank, d_state]`, as many as there are angles."""
    cos, sin = angle.cos()[:, :, :, None], angle.sin()[:, :, :, None]
    turned, rest = x.split([2 * angle.shape[-1], x.shape[-1] - 2 * angle.shape[-1]], dim=-1)
    real, imaginary = turned.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)
