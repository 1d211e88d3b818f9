"""Mamba: a diagonal state space model that chooses, token by token, what to keep, what to write and what to read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution
from ..ops.selective_scan import OP, selective_scan
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState

SHORTEST_STEP, LONGEST_STEP, LEAST_STEP = 1e-3, 1e-1, 1e-4  # at the start, as in the released code


@register_mixer
class Mamba(Mixer):
    """Mamba (Gu & Dao 2023, arXiv 2312.00752, section 3.4 and figure 3).

    As in the released code, where the paper is open: the convolution has a bias, the projections from `d_model` and
    back have none; the step sizes start log-uniformly between 0.001 and 0.1; A starts as -1, ..., -d_state (S4D-Real)
    in every channel and is discretised by zero-order hold, B by its first-order approximation. A and D are free of
    weight decay.
    """

    card = MixerCard(
        name="mamba",
        family="state space",
        summary="Selective state space model: step size, input and output vector depend on the token",
        paper="Gu & Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        arxiv="2312.00752",
        year=2023,
        state_growth="constant",
        recurrence="h_t = exp(dt_t A) * h_{t-1} + dt_t B_t x_t,  y_t = C_t . h_t + D x_t",
        ops=(OP,),
    )

    expand: int = option("channels of the state space model, in multiples of d_model", default=2, least=1)
    d_state: int = option("numbers that each channel remembers", default=16, least=1, small=4)
    dt_rank: int | None = option(
        "rank of the projection to step sizes; None: d_model / 16, rounded up", default=None, least=1
    )
    conv_size: int = option("tokens that the convolution before the state space model sees", default=4, least=1)

    def build(self) -> None:
        if self.dt_rank is None:
            self.dt_rank = math.ceil(self.d_model / 16)
        channels = self.expand * self.d_model
        self.in_proj = nn.Linear(self.d_model, 2 * channels, bias=False)
        self.conv = ShortConvolution(channels, self.conv_size, "silu", bias=True)
        self.x_proj = nn.Linear(channels, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, self.d_state + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.o_proj = nn.Linear(channels, self.d_model, bias=False)

        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            logs = torch.empty(channels).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP))
            step = logs.exp().clamp(min=LEAST_STEP)
            self.dt_proj.bias.copy_(step + (-torch.expm1(-step)).log())  # which softplus maps to the step

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        values, gate = self.in_proj(x).chunk(2, dim=-1)
        values, conv = self.conv(values, None if state is None else state.conv)
        step, B, C = self.x_proj(values).split([self.dt_proj.in_features, self.d_state, self.d_state], dim=-1)
        precision = torch.promote_types(x.dtype, torch.float32)
        step = F.linear(step, self.dt_proj.weight).to(precision) + self.dt_proj.bias
        y, memory = selective_scan(
            values,
            F.softplus(step),
            -self.A_log.to(precision).exp(),
            B,
            C,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = torch.addcmul(y, self.D.to(y.dtype), values) * F.silu(gate)
        y = self.o_proj(y).to(x.dtype)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.A_log, self.D], "weight_decay": 0.0}]
