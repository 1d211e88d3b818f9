"""Attention without a softmax and without positions: the nearest key that a query likes takes the most."""

from __future__ import annotations

from torch import Tensor

from ..interface import MixerCard
from ..ops.stick_breaking import OP, stick_breaking
from ..options import option
from ..registry import register_mixer
from .base import KeyValueMixer


@register_mixer
class StickBreakingAttention(KeyValueMixer):
    """Stick-breaking attention (Tan et al. 2024, arXiv 2410.17980).

    From the newest key to the oldest, each takes the share `sigmoid(q . k / sqrt(d))` of what is left. The paper leaves
    open what becomes of the rest; as in the authors' code it goes to the token's own value (`remainder`), which
    otherwise a token does not see, unless `attend_current` gives it the first share.
    """

    card = MixerCard(
        name="stick_breaking_attention",
        family="softmax",
        summary="Each key, from the newest on, takes a sigmoid share of what the newer ones left; no positions",
        paper="Tan et al., Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
        arxiv="2410.17980",
        year=2024,
        state_growth="linear",
        recurrence="o_t = sum_{s < t} sigmoid(z_ts) prod_{s < r < t} (1 - sigmoid(z_tr)) v_s,  z_ts = q_t . k_s / √d",
        complexity="O(T^2)",
        limits="on a CPU its time depends on the data: keys after the end of all sticks are skipped",
        ops=(OP,),
    )

    attend_current: bool = option("a token's own key takes the first share", default=False)
    remainder: bool = option("what is left goes to the token's own value", default=True)

    def build(self) -> None:
        if not (self.attend_current or self.remainder):
            raise ValueError("attend_current and remainder cannot both be False: the first token would read nothing")
        super().build()

    def read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        how = {"attend_current": self.attend_current, "remainder": self.remainder}
        return stick_breaking(q, keys, values, **how, backend=self.backend)
