"""Raven: slots that are written a few at a time, so that the others keep what they hold."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, RMSNorm, head_size, split_heads
from ..layers.discretisation import initial_dt_bias
from ..linear.gated_slot_attention import SlotState
from ..ops.slot_attention import OP, slot_attention
from ..options import option
from ..registry import register_mixer
from ..softmax.base import key_value_heads


@register_mixer
class Raven(Mixer):
    """Raven (Afzal, Bick, Xing, Cevher, Gu 2026, "Raven: High-Recall Sequence Modeling with Sparse Memory Routing").

    Each head has slots of one key and one value. A router scores them by the token, r_t keeps the `top_k` best scores,
    divided by their sum and by `alpha`; slot i decays by `exp(a_t r_t[i])` and takes in as much of the token's key and
    value as it lost. Slots that are not chosen stay as they are. Reading is softmax attention to all slots, without a
    factor 1 / sqrt(d). The decay a_t is Mamba-2's, one per head.

    As in the paper's 400M model: four heads, 256 slots, 32 of them written, SiLU and then RMSNorm for queries and keys,
    SiLU for values, an output gate, no convolution, no positions. Where the paper is open, as its released code: what
    is read passes SiLU, RMSNorm and the gate. Not offered: its rotary embedding and router bias, which the paper's
    models do not have.

    exploration adds Gumbel noise to the router in training mode, from torch's global generator, so that training calls
    are random as with dropout; in `eval()` mode there is none.
    """

    card = MixerCard(
        name="raven",
        family="memory",
        summary="Softmax attention to slots of which a router lets each token write only a few",
        paper="Afzal et al., Raven: High-Recall Sequence Modeling with Sparse Memory Routing",
        arxiv=None,
        year=2026,
        state_growth="constant",
        recurrence="K_t = e^{a_t r_t} K_{t-1} + (1 - e^{a_t r_t}) k_t^T, V_t likewise,  o_t = V_t^T softmax(K_t q_t)",
        limits="with exploration, calls in training mode are random; which slots are written is a hard choice",
        ops=(OP,),
        low_precision_tolerance=0.2,  # rounded scores now and then choose another slot
    )

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int = option("heads with slots, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    slots: int = option("slots of a head", default=256, least=1, small=12)
    top_k: int = option("slots of a head that a token writes", default=32, least=1, small=4)
    alpha: float = option("divides the router's weights; the paper's 800M model has 4", default=1.0, above=0)
    score: Literal["sigmoid", "softmax"] = option("of the router; softmax weights are not rescaled", default="sigmoid")
    router: Literal["linear", "mlp"] = option("what scores the slots", default="linear")
    exploration: bool = option("noise in the router, in training mode", default=True, small=False)
    decay: Literal["mamba2", "gla"] = option("one for each head, or one for each slot", default="mamba2")
    qk_norm: bool = option("normalise queries and keys head by head", default=True)
    output_gate: bool = option("gate what is read by SiLU(W x)", default=True)
    chunk_size: int = option("tokens computed at once", default=32, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        if self.top_k > self.slots:
            raise ValueError(f"top_k must be at most slots = {self.slots}, got {self.top_k}")
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        self.q_proj = nn.Linear(self.d_model, self.heads * d_head, bias=False)
        self.k_proj = nn.Linear(self.d_model, kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(self.d_model, kv_heads * d_head, bias=False)
        self.q_norm = RMSNorm(d_head) if self.qk_norm else None
        self.k_norm = RMSNorm(d_head) if self.qk_norm else None
        scores: nn.Module = nn.Linear(self.d_model, kv_heads * self.slots, bias=False)
        if self.router == "mlp":
            scores = nn.Sequential(nn.Linear(self.d_model, self.d_model), nn.GELU(), scores)
        self.router_proj = scores
        self._build_decay()
        if self.output_gate:
            self.output = GatedOutput(self.d_model, self.heads, d_head)
        else:
            self.o_norm = RMSNorm(self.heads * d_head)
            self.o_proj = nn.Linear(self.heads * d_head, self.d_model, bias=False)

    def _build_decay(self) -> None:
        """As Mamba-2: A uniform in 0..16, and dt_bias such that softplus(dt_bias) is log-uniform in 0.001..0.1."""
        if self.decay == "gla":
            self.decay_proj = nn.Linear(self.d_model, self.kv_heads * self.slots, bias=False)
            return
        self.decay_proj = nn.Linear(self.d_model, self.kv_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.kv_heads).uniform_(1e-4, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(self.kv_heads))

    def mix(self, x: Tensor, state: SlotState | None, return_state: bool) -> tuple[Tensor, SlotState | None]:
        q = F.silu(split_heads(self.q_proj(x), self.heads))
        k, v = (F.silu(split_heads(projection(x), self.kv_heads)) for projection in (self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        log_decay = self._decay(x) * self._route(x)
        read, slots = slot_attention(
            q,
            k,
            v,
            -torch.expm1(log_decay),
            log_decay,
            scale=1.0,
            chunk_size=self.chunk_size,
            state=None if state is None else (state.keys, state.values),
            return_state=return_state,
            backend=self.backend,
        )
        read = F.silu(read)
        y = self.output(read, x) if self.output_gate else self.o_proj(self.o_norm(read.flatten(2)))
        return y, self.next_state(SlotState, x, state, keys=slots[0], values=slots[1]) if slots else None

    def _decay(self, x: Tensor) -> Tensor:
        """a_t `[batch, time, kv_heads, 1 or slots]`, below 0."""
        a = split_heads(self.decay_proj(x), self.kv_heads).to(torch.promote_types(x.dtype, torch.float32))
        if self.decay == "gla":
            return F.logsigmoid(a) / 8  # the damping of GLA and GSA
        return -self.A_log.to(a.dtype).exp()[:, None] * F.softplus(a + self.dt_bias.to(a.dtype)[:, None])

    def _route(self, x: Tensor) -> Tensor:
        """r_t `[batch, time, kv_heads, slots]`, 0 but for `top_k` slots."""
        scores = split_heads(self.router_proj(x), self.kv_heads).to(torch.promote_types(x.dtype, torch.float32))
        if self.exploration and self.training:
            scores = scores - torch.empty_like(scores).exponential_().log()  # plus a sample of Gumbel(0, 1)
        scores = scores.sigmoid() if self.score == "sigmoid" else scores.softmax(dim=-1)
        best, chosen = scores.topk(self.top_k, dim=-1)
        if self.score == "sigmoid":
            best = best / (best.sum(dim=-1, keepdim=True) + 1e-9)
        return torch.zeros_like(scores).scatter(-1, chosen, best / self.alpha)
