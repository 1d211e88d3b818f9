"""S4D: a state space model with a diagonal matrix, the same at every time, and therefore a convolution."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..ops.diagonal_ssm import OP, diagonal_ssm
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # at the start


def initial_A(kind: str, d_state: int) -> tuple[Tensor, Tensor | None]:
    """Negative real parts, and imaginary parts if there are any, of A (section 4.3 of the paper).

    Of complex numbers, only one of each pair of conjugates, so `d_state / 2`.
    """
    if kind == "real":  # -(n + 1)
        return torch.arange(1.0, d_state + 1), None
    n = torch.arange(d_state // 2, dtype=torch.float32)
    imaginary = math.pi * n if kind == "lin" else d_state / math.pi * (d_state / (2 * n + 1) - 1)
    return torch.full_like(n, 0.5), imaginary


@register_mixer
class S4D(Mixer):
    """S4D (Gu et al. 2022, arXiv 2206.11893): one state space model per channel, then GELU and a gated linear unit.

    Around the state space model stand the skip `D x`, GELU, and a linear layer of twice the width with GLU, as in the
    released code. The input vector B is fixed at 1 and the output vector C is learnt from a normal distribution: only
    their product matters. The real part of A is learnt as a logarithm, so it stays negative. A, D and the step sizes
    are free of weight decay. Computed chunk by chunk, which gives the same convolution as the paper's over the whole
    sequence, with a state.
    """

    card = MixerCard(
        name="s4d",
        family="state space",
        summary="Diagonal state space model that is the same at every time: a convolution of unlimited length",
        paper="Gu et al., On the Parameterization and Initialization of Diagonal State Space Models",
        arxiv="2206.11893",
        year=2022,
        state_growth="constant",
        recurrence="h_t = exp(dt A) * h_{t-1} + (exp(dt A) - 1) / A * x_t,  y_t = 2 Re(C . h_t) + D x_t",
        limits="not selective: what it keeps does not depend on what it reads",
        ops=(OP,),
    )

    d_state: int = option(
        "numbers that each channel remembers; complex ones count as two", default=64, least=2, small=8
    )
    initialisation: Literal["lin", "inv", "real"] = option(
        "of A; lin: -1/2 + i pi n, inv: as S4-LegS's eigenvalues, real: -(n + 1)", default="lin"
    )
    discretisation: Literal["zoh", "bilinear"] = option("zero-order hold, or bilinear", default="zoh")
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        if self.initialisation != "real" and self.d_state % 2:
            raise ValueError(
                f"d_state must be even for pairs of complex numbers, got {self.d_state}; or initialisation='real'"
            )
        decay, frequency = initial_A(self.initialisation, self.d_state)
        n = len(decay)
        self.log_step = nn.Parameter(
            torch.empty(self.d_model).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP))
        )
        self.A_log = nn.Parameter(decay.log().repeat(self.d_model, 1))
        self.A_imag = None if frequency is None else nn.Parameter(frequency.repeat(self.d_model, 1))
        # a complex normal number has its variance in two parts
        self.C = nn.Parameter(
            torch.randn(self.d_model, n) if frequency is None else torch.randn(self.d_model, n, 2) / 2**0.5
        )
        self.D = nn.Parameter(torch.randn(self.d_model))
        self.o_proj = nn.Linear(self.d_model, 2 * self.d_model)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        transition, readout = self.discretised(torch.promote_types(x.dtype, torch.float32))
        memory = None if state is None else state.memory
        if memory is not None and transition.is_complex():
            memory = torch.view_as_complex(memory)
        y, memory = diagonal_ssm(
            x,
            transition,
            readout,
            chunk_size=self.chunk_size,
            state=memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = F.gelu(y + self.D.to(x.dtype) * x)
        y = F.glu(self.o_proj(y), dim=-1).to(x.dtype)
        if memory is None:
            return y, None
        # real numbers, which can be saved
        memory = torch.view_as_real(memory) if memory.is_complex() else memory
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=None)

    def discretised(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What a state is multiplied by per token, and what it is read with, `[d_model, d_state]` or half of it.

        `dtype`: real, of 32 bits or more.
        """
        step = self.log_step.to(dtype).exp()[:, None]
        A, C = -self.A_log.to(dtype).exp(), self.C.to(dtype)
        if self.A_imag is not None:
            A, C = torch.complex(A, self.A_imag.to(dtype)), 2 * torch.view_as_complex(C)
        if self.discretisation == "zoh":
            return (step * A).exp(), C * torch.expm1(step * A) / A
        return (1 + step / 2 * A) / (1 - step / 2 * A), C * step / (1 - step / 2 * A)

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = [self.log_step, self.A_log, self.A_imag, self.D]
        return [{"params": [p for p in own if p is not None], "weight_decay": 0.0}]
