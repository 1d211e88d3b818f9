"""A control: only the short convolution that stands before many mixers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution as Convolution
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@dataclass(frozen=True, eq=False)
class ConvolutionState(MixerState):
    """conv: the last inputs of the convolution, `[batch, conv_size - 1, d_model * expand]`."""

    conv: Tensor


@register_mixer
class ShortConvolutionMixer(Mixer):
    """A projection, a causal depthwise convolution with SiLU, and a projection back.

    What of a mixer's recall is due to its short convolution is seen by comparing it with this one.
    """

    card = MixerCard(
        name="short_convolution",
        family="controls",
        summary="A short causal depthwise convolution between two projections: sees the last few tokens only",
        paper="-",
        arxiv=None,
        year=2026,
        state_growth="constant",
        recurrence="o_t = W_o silu(sum_{i < size} c_i * (W_i x_{t - i}))",
        limits="a control: no token sees further back than conv_size - 1",
        backends=("reference",),
    )

    conv_size: int = option("tokens that the convolution sees, the token itself included", default=4, least=1)
    expand: int = option("channels, in multiples of d_model", default=1, least=1)

    def build(self) -> None:
        channels = self.expand * self.d_model
        self.in_proj = nn.Linear(self.d_model, channels, bias=False)
        self.conv = Convolution(channels, self.conv_size, "silu")
        self.o_proj = nn.Linear(channels, self.d_model, bias=False)

    def mix(
        self, x: Tensor, state: ConvolutionState | None, return_state: bool
    ) -> tuple[Tensor, ConvolutionState | None]:
        y, conv = self.conv(self.in_proj(x), None if state is None else state.conv)
        return self.o_proj(y), self.next_state(ConvolutionState, x, state, conv=conv) if return_state else None
