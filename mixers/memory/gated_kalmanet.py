"""Gated KalmaNet: ridge regression over a fading past, solved by a fixed number of Chebyshev steps per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, ShortConvolution, head_size, split_heads, unit_length
from ..ops.ridge_regression import OP, ridge_regression
from ..options import option
from ..registry import register_mixer
from .mesa import RegressionState

WRITE_FLOOR = 1e-6


@register_mixer
class GatedKalmaNet(Mixer):
    """Gated KalmaNet (Peng et al. 2025, arXiv 2511.21016): the gain of a Kalman filter without process noise, exactly
    solved for instead of approximated by one gradient step as in delta rules.

    The ridge is `ridge` times the Frobenius norm of the gram matrix, which bounds the condition number by
    1 + 1 / ridge. A gate per token and head scales key and value before they are written, another one, as in Mamba-2,
    lets the past fade, and a third mixes the solution with the query itself. Queries, keys and values pass a short
    convolution with SiLU, queries and keys have length 1. What is read is normalised head by head and gated, as the
    released layer does with as many key as query heads. Gradients are those of the steps that were taken; the released
    kernels use those of an exact solution, which differ where the steps have not converged.
    """

    card = MixerCard(
        name="gated_kalmanet",
        family="memory",
        summary="Ridge regression over a fading past with adaptive regularisation, by Chebyshev iteration",
        paper="Peng et al., Gated KalmaNet: A Fading Memory Layer Through Test-Time Ridge Regression",
        arxiv="2511.21016",
        year=2025,
        state_growth="constant",
        recurrence="H_t = g_t H_{t-1} + k_t k_t^T,  U_t = g_t U_{t-1} + k_t v_t^T,  "
        "o_t = U_t^T (a_t (H_t + r ||H_t|| I)^-1 q_t + (1 - a_t) q_t)",
        limits="every token costs `steps` products with its H_t; training stores what the steps went through",
        ops=(OP,),
    )

    heads: int = option("number of memories", default=4, least=1, small=2)
    d_head: int | None = option(
        "length of a key and of a value; None: d_model / heads", default=None, least=1, small=16
    )
    steps: int = option("Chebyshev steps after the first", default=30, least=1, small=8)
    ridge: float = option("ridge, in Frobenius norms of the gram matrix", default=0.02, above=0)
    conv_size: int = option("tokens that the convolution over q, k and v sees; 0: none", default=4, least=0)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)
    chunk_size: int = option("tokens computed at once", default=32, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        d_model, heads = self.d_model, self.heads
        self.d_head = d_head = head_size(d_model, heads, self.d_head)
        self.qkv_proj = nn.Linear(d_model, 3 * heads * d_head, bias=False)
        self.conv = ShortConvolution(3 * heads * d_head, self.conv_size, "silu") if self.conv_size else None
        self.decay_proj = nn.Linear(d_model, heads, bias=False)
        self.beta_proj, self.mix_proj = nn.Linear(d_model, heads), nn.Linear(d_model, heads)
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(heads)), nn.Parameter(torch.empty(heads))
        self.output = GatedOutput(d_model, heads, d_head, gate="silu" if self.output_gate else None)
        self._reset_decay()

    @torch.no_grad()
    def _reset_decay(self) -> None:
        """A uniform in 0..16, and dt_bias such that softplus(dt_bias) is log-uniform in 0.001..0.1."""
        self.A_log.uniform_(0, 16).clamp_(min=1e-3).log_()
        dt = 10 ** torch.empty_like(self.dt_bias).uniform_(-3, -1)
        self.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())

    def mix(
        self, x: Tensor, state: RegressionState | None, return_state: bool
    ) -> tuple[Tensor, RegressionState | None]:
        qkv, conv = self.qkv_proj(x), None
        if self.conv is None:
            qkv = F.silu(qkv)
        else:
            qkv, conv = self.conv(qkv, None if state is None else state.conv)
        q, k, v = split_heads(qkv, 3 * self.heads).chunk(3, dim=2)
        precision = torch.promote_types(x.dtype, torch.float32)
        # softplus; but the backward of torch's (2.13) gets its strides wrong where it is compiled
        rate = -F.logsigmoid(-(self.decay_proj(x).to(precision) + self.dt_bias.to(precision)))
        written = self.beta_proj(x).to(precision).sigmoid() + WRITE_FLOOR
        read, sums = ridge_regression(
            unit_length(q),
            unit_length(k),
            v,
            log_decay=-self.A_log.to(precision).exp() * rate,
            beta=written.square(),
            ridge=self.ridge,
            mix=self.mix_proj(x).to(precision).sigmoid(),
            solver="chebyshev",
            steps=self.steps,
            chunk_size=self.chunk_size,
            state=None if state is None else state.sums,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.output(read * head_size(self.d_model, self.heads, self.d_head) ** -0.5, x)
        return y, self.next_state(RegressionState, x, state, sums=sums, conv=conv) if return_state else None
