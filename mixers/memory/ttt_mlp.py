"""TTT-MLP: the state is a two-layer MLP per head that takes a gradient step on every mini-batch of tokens."""

from __future__ import annotations

from ..interface import MixerCard
from ..ops.inner_model import Layers
from ..ops.ttt import OP
from ..options import option
from ..registry import register_mixer
from .test_time_training import TestTimeTraining


@register_mixer
class TTTMLP(TestTimeTraining):
    """TTT-MLP (Sun et al. 2024, arXiv 2407.04620): an inner MLP with GELU per head, trained while it reads.

    A token's inner learning rate is `inner_learning_rate / d_head` times a learned gate in 0..1; the rate 0.1 is the
    paper's for this inner model, ten times smaller than that of `ttt_linear`.
    Raises `ValueError` for options that do not fit together.
    """

    card = MixerCard(
        name="ttt_mlp",
        family="memory",
        summary="A two-layer MLP per head as the state, trained on each mini-batch of tokens by a gradient step",
        paper="Sun et al., Learning to (Learn at Test Time): RNNs with Expressive Hidden States",
        arxiv="2407.04620",
        year=2024,
        state_growth="constant",
        recurrence="W_t = W_{t-1} - eta_t grad ||f(k_t; W) - v_t||^2,  o_t = f(q_t; W_t),  f(x) = x + LN(MLP(x))",
        ops=(OP,),
    )

    inner_learning_rate: float = option("of the inner model's steps", default=0.1, above=0)
    expand: int = option("width inside the MLP, in multiples of d_head", default=4, least=1, small=2)

    def build_inner_model(self) -> None:
        hidden = self.expand * self.d_head
        self.W1, self.b1 = self.inner_layer(self.d_head, hidden)
        self.W2, self.b2 = self.inner_layer(hidden, self.d_head)

    def inner_layers(self) -> Layers:
        return (self.W1, self.b1), (self.W2, self.b2)
