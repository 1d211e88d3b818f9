"""DeltaFormer: softmax attention over values from which what was already known has been taken away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..interface import MixerCard
from ..ops.attention import attention
from ..ops.delta_attention import OP, new_values
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer
from .base import AttentionState, KeyValueAttention


@register_mixer
class DeltaFormer(KeyValueAttention):
    """DeltaFormer (Zhong et al. 2025, arXiv 2505.19488): the delta rule for the unbounded memory of softmax attention.

    A value u that joins the memory is the token's value less beta times what attention reads from the memory so far;
    the output is softmax attention over u. The state is that of attention, u in the place of the values.

    Details follow flash-linear-attention's layer: beta is a projection with bias and no activation (`linear`), with
    which values grow where |beta| stays above 1; `sigmoid` keeps it in 0..1, `one` does without. probe is what that
    reading asks with: the layer's documentation says that keys work better than queries, its code takes the queries;
    here it is the keys. Each of the kv_heads has a beta and a memory; queries as probes need as many as heads. The
    other options: see `KeyValueAttention`.
    """

    card = MixerCard(
        name="deltaformer",
        family="softmax",
        summary="Softmax attention whose values leave out what the tokens before them already answer",
        paper="Zhong et al., Understanding Transformer from the Perspective of Associative Memory",
        arxiv="2505.19488",
        year=2025,
        state_growth="linear",
        recurrence="u_t = v_t - beta_t sum_{s < t} softmax_s(k_t . k_s) u_s,  "
        "o_t = sum_{s <= t} softmax_s(q_t . k_s) u_s",
        complexity="O(T^2)",
        limits="two attentions in the place of one, of which the first solves a triangular system block after block",
        ops=(OP,),
    )

    probe: Literal["keys", "queries"] = option("what a new value is compared by", default="keys")
    beta: Literal["linear", "sigmoid", "one"] = option("how much is taken away from a new value", default="linear")

    def build(self) -> None:
        super().build()
        if self.probe == "queries" and self.kv_heads != self.heads:
            raise ValueError(f"probe='queries' needs kv_heads = heads = {self.heads}, got {self.kv_heads}")
        self.beta_proj = None if self.beta == "one" else nn.Linear(self.d_model, self.kv_heads)

    def mix(self, x: Tensor, state: AttentionState | None, return_state: bool) -> tuple[Tensor, AttentionState | None]:
        position = 0 if state is None else state.position
        q, k, v, conv = self._project(x, None if state is None else state.conv)
        q, k = self.positioned(q, k, position)
        keys = GrowableBuffer.of(k) if state is None else state.keys.append(k)
        seen = keys.values.to(q.dtype)
        past = None if state is None else state.values.values
        u = new_values(k if self.probe == "keys" else q, seen, v, self._beta(x), past=past, backend=self.backend)
        values = GrowableBuffer.of(u) if state is None else state.values.append(u)
        backend = "reference" if self.backend == "reference" else "auto"
        y = self.output(attention(q, seen, values.values.to(q.dtype), backend=backend), x)
        if not return_state:
            return y, None
        keys, values = (self.remember(buffer, fresh=state is None) for buffer in (keys, values))
        return y, self.next_state(AttentionState, x, state, keys=keys, values=values, conv=conv)

    def _beta(self, x: Tensor) -> Tensor:
        if self.beta_proj is None:
            return x.new_ones(*x.shape[:2], self.kv_heads)
        beta = self.beta_proj(x).to(torch.promote_types(x.dtype, torch.float32))
        return beta.sigmoid() if self.beta == "sigmoid" else beta
