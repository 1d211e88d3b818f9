"""TTT-Linear: the state is a linear model per head that takes a gradient step on every mini-batch of tokens."""

from __future__ import annotations

from ..interface import MixerCard
from ..ops.inner_model import Layers
from ..ops.ttt import OP
from ..registry import register_mixer
from .test_time_training import TestTimeTraining


@register_mixer
class TTTLinear(TestTimeTraining):
    """TTT-Linear (Sun et al. 2024, arXiv 2407.04620): an inner linear model per head, trained while it reads.

    A token's inner learning rate is `inner_learning_rate / d_head` times a learned gate in 0..1.
    Raises `ValueError` for options that do not fit together.
    """

    card = MixerCard(
        name="ttt_linear",
        family="memory",
        summary="A linear model per head as the state, trained on each mini-batch of tokens by a gradient step",
        paper="Sun et al., Learning to (Learn at Test Time): RNNs with Expressive Hidden States",
        arxiv="2407.04620",
        year=2024,
        state_growth="constant",
        recurrence="W_t = W_{t-1} - eta_t grad ||f(k_t; W) - v_t||^2,  o_t = f(q_t; W_t),  f(x) = x + LN(x W + b)",
        ops=(OP,),
    )

    def build_inner_model(self) -> None:
        self.W1, self.b1 = self.inner_layer(self.d_head, self.d_head)

    def inner_layers(self) -> Layers:
        return ((self.W1, self.b1),)
