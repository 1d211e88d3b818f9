"""A control: a layer that mixes nothing over time."""

from __future__ import annotations

from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@register_mixer
class Identity(Mixer):
    """No mixing: one linear map of each token by itself, and no state. What a model does with it, it does without a
    sequence mixer."""

    card = MixerCard(
        name="identity",
        family="controls",
        summary="One linear map of each token: mixes nothing, what a model can do without a mixer",
        paper="-",
        arxiv=None,
        year=2026,
        state_growth="constant",
        recurrence="o_t = W x_t",
        limits="a control: no token sees another one",
        backends=("reference",),
    )

    bias: bool = option("add a bias", default=False)

    def build(self) -> None:
        self.o_proj = nn.Linear(self.d_model, self.d_model, bias=self.bias)

    def mix(self, x: Tensor, state: MixerState | None, return_state: bool) -> tuple[Tensor, MixerState | None]:
        return self.o_proj(x), self.next_state(MixerState, x, state) if return_state else None
