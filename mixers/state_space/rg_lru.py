"""The recurrent block of Griffin: an RG-LRU, whose gates see the token but not the state, after a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution, split_heads
from ..ops.scan import OP, linear_scan
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState

C = 8.0  # how much sharper than its parameter the decay can get (section 2.4)
LEAST_DECAY, LARGEST_DECAY = 0.9, 0.999  # at the start
LEAST_VARIANCE = 1e-12  # under the root of the input's scale, whose gradient is infinite at 0


@register_mixer
class RGLRU(Mixer):
    """The recurrent block of Hawk and Griffin (De et al. 2024, arXiv 2402.19427, sections 2.3 and 2.4).

    As the released RecurrentGemma, where the paper is open or differs: the matrices of the two gates are
    block-diagonal; the first token of a text is not scaled by `sqrt(1 - a^2)`, since nothing stands before it; the
    convolution and all projections have biases; a starts uniformly on the ring between 0.9 and 0.999, and the last
    projection with a variance of 2 / layers / width. The gates' matrices start as the paper says (LeCun).
    """

    card = MixerCard(
        name="rg_lru",
        family="state space",
        summary="Griffin's gated linear recurrence, one number per channel, with a gated branch beside it",
        paper="De et al., Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models",
        arxiv="2402.19427",
        year=2024,
        state_growth="constant",
        recurrence="a_t = exp(-8 softplus(L) r_t),  h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)",
        ops=(OP,),
    )

    heads: int = option("blocks of the gates' matrices", default=4, least=1, small=2)
    width: int | None = option("channels of the recurrence; None: d_model", default=None, least=1)
    conv_size: int = option("tokens that the convolution before the recurrence sees", default=4, least=1)

    def build(self) -> None:
        if self.width is None:
            self.width = self.d_model
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width {self.width} of the recurrence, got {self.heads}")
        block = self.width // self.heads
        self.in_proj = nn.Linear(self.d_model, self.width)
        self.g_proj = nn.Linear(self.d_model, self.width)
        self.conv = ShortConvolution(self.width, self.conv_size, bias=True)
        self.gates_weight = nn.Parameter(torch.empty(self.heads, block, 2 * block))  # of the input, of the decay
        self.gates_bias = nn.Parameter(torch.zeros(self.heads, 2 * block))
        self.decay = nn.Parameter(torch.empty(self.width))  # softplus of it is -log(a)
        self.o_proj = nn.Linear(self.width, self.d_model)

        variances: dict[Any, float] = {
            self.in_proj: 1 / self.d_model,
            self.g_proj: 1 / self.d_model,
            self.conv: 0.01 / self.conv_size,
            self.o_proj: 2 / self.n_layers / self.width,
        }
        for module, variance in variances.items():
            nn.init.normal_(module.weight, std=variance**0.5)
            nn.init.zeros_(module.bias)
        nn.init.normal_(self.gates_weight, std=block**-0.5)
        with torch.no_grad():
            squares = torch.empty(self.width).uniform_(LEAST_DECAY**2, LARGEST_DECAY**2)
            self.decay.copy_((-0.5 * squares.log()).expm1().log())

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        values, conv = self.conv(self.in_proj(x), None if state is None else state.conv)
        decay, writes = self._gated(values, first=state is None)
        y, memory = linear_scan(
            decay,
            writes,
            positive=True,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(y.to(values.dtype) * F.gelu(self.g_proj(x), approximate="tanh")).to(x.dtype)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None

    def _gated(self, values: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """Decays, and what is written, of `values [batch, time, width]`; first: a text starts here."""
        precision = torch.promote_types(values.dtype, torch.float32)
        products = torch.einsum("bthi,hij->bthj", split_heads(values, self.heads), self.gates_weight.to(values.dtype))
        gates = (products.to(precision) + self.gates_bias).sigmoid()
        input_gate, decay_gate = (gate.flatten(2) for gate in gates.chunk(2, dim=-1))
        log_decay = -C * F.softplus(self.decay.to(precision)) * decay_gate
        scale = (-torch.expm1(2 * log_decay)).clamp(min=LEAST_VARIANCE).sqrt()
        if first:
            scale = torch.cat([torch.ones_like(scale[:, :1]), scale[:, 1:]], dim=1)
        return log_decay.exp(), scale * input_gate * values

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.decay], "weight_decay": 0.0}]
