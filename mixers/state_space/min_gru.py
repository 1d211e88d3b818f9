"""minGRU: a GRU whose gate does not see the state, so that nothing of it is left but a gated moving average."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution
from ..ops.scan import OP, linear_scan
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState


def positive(x: Tensor) -> Tensor:
    """`x + 1/2` from 0 on, and sigmoid(x) below: positive, continuous, with slope 1 on the right (appendix B)."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


@register_mixer
class MinGRU(Mixer):
    """minGRU (Feng et al. 2024, arXiv 2410.01201, section 3.1 and appendix B).

    The recurrence is computed as it is written: a scan that never divides by products of gates needs no logarithms. The
    candidates are positive all the same, as in the paper's version in logarithms (`candidate="positive"`), or linear as
    in its plain version. The paper leaves the width and the way back from it to the block: here the state is `expand`
    times as wide as the model, and a projection leads back. It starts from zeros, and no bias stands anywhere but in
    the gate and the candidate.
    """

    card = MixerCard(
        name="min_gru",
        family="state space",
        summary="GRU without hidden-to-hidden weights: a moving average that a gate opens and closes",
        paper="Feng et al., Were RNNs All We Needed?",
        arxiv="2410.01201",
        year=2024,
        state_growth="constant",
        recurrence="z_t = sigmoid(W_z x_t),  h_t = (1 - z_t) * h_{t-1} + z_t * g(W_h x_t)",
        ops=(OP,),
    )

    expand: int = option("width of the state, in multiples of d_model", default=2, least=1)
    candidate: Literal["positive", "linear"] = option("what a token may write", default="positive")
    conv_size: int = option("tokens that a convolution before the recurrence sees; 0: none", default=0, least=0)

    def build(self) -> None:
        width = self.expand * self.d_model
        self.conv = ShortConvolution(self.d_model, self.conv_size) if self.conv_size else None
        self.in_proj = nn.Linear(self.d_model, 2 * width)
        self.o_proj = nn.Linear(width, self.d_model, bias=False)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        seen, conv = x, None
        if self.conv is not None:
            seen, conv = self.conv(x, None if state is None else state.conv)
        projected = self.in_proj(seen)
        gate, candidate = projected.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        if self.candidate == "positive":
            candidate = positive(candidate)
        y, memory = linear_scan(
            F.sigmoid(-gate),
            F.sigmoid(gate) * candidate,
            positive=True,
            state=None if state is None else state.memory,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_proj(y.to(projected.dtype)).to(x.dtype)
        return y, self.next_state(RecurrentState, x, state, memory=memory, conv=conv) if return_state else None
