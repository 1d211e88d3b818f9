"""Mixture of memories: a router sends each token to a few of several delta-rule memories, which see nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import GatedOutput, ShortConvolution, head_size, split_heads, unit_length, value_size
from ..layers.discretisation import initial_dt_bias
from ..ops.recurrence import OP, linear_recurrence
from ..options import option
from ..registry import register_mixer
from ..state import RecurrentState
from .routing import route


@register_mixer
class MixtureOfMemories(Mixer):
    """MoM (Du et al. 2025, arXiv 2502.13685) with the gated delta rule, and a memory that all tokens share.

    Each memory has projections of its own to keys, values, gates and rates, and reads as a sequence the tokens that are
    routed to it; so does the short convolution, whose weights the memories share, as in flash-linear-attention's
    inference (its training lets the convolution run on from one memory into the next, which no split could repeat). A
    token reads the memories it is routed to, after it was written, summed by the router's renormalised weights, and the
    shared one. The balance loss of the paper belongs to the training, not to the layer: there is none here.

    The state's memory is `[batch, (memories + 1) * heads, d_head, d_v]`, its conv
    `[batch, memories + 1, conv_size - 1, channels]`, both with the shared memory last, if there is one.
    """

    card = MixerCard(
        name="mixture_of_memories",
        family="linear",
        summary="Delta-rule memories of which a router gives each token a few, and one that all tokens share",
        paper="Du et al., MoM: Linear Sequence Modeling with Mixture-of-Memories",
        arxiv="2502.13685",
        year=2025,
        state_growth="constant",
        recurrence="o_t = sum_m g_t^m (S_t^m)^T q_t;  gated delta rule S_t^m where g_t^m > 0, else S_t^m = S_{t-1}^m",
        limits="which memories a token is written to is a hard choice; no loss balances them",
        ops=(OP,),
        compile_note="how many tokens a memory is given depends on the data: the graph breaks where they are sorted",
        low_precision_tolerance=0.2,  # rounded scores now and then choose another memory
    )

    heads: int = option("heads of a memory", default=4, least=1, small=2)
    d_head: int = option("length of a head's keys; None: d_model / heads", default=None, least=1, small=16)
    expand_v: float = option("length of a head's values, in multiples of d_head", default=1.0, above=0)
    memories: int = option("memories to choose from", default=4, least=2, most=4096, small=3)
    top_k: int = option("memories that a token is routed to; the router learns from more than one", default=2, least=2)
    shared: bool = option("one more memory, of all tokens", default=True)
    conv_size: int = option("tokens of a memory that the short convolution sees", default=4, least=1)
    chunk_size: int = option("tokens computed at once", default=64, least=1, small=16, speed_only=True, piece=True)

    def build(self) -> None:
        if self.top_k > self.memories:
            raise ValueError(f"top_k must be at most memories = {self.memories}, got {self.top_k}")
        self.d_head = d_k = head_size(self.d_model, self.heads, self.d_head)
        d_v = value_size(d_k, self.expand_v)
        count = self.memories + self.shared
        self.sizes = [self.heads * d_k, self.heads * d_k, self.heads * d_v]
        self.router_proj = nn.Linear(self.d_model, self.memories, bias=False)
        self.q_proj = nn.Linear(self.d_model, self.sizes[0], bias=False)
        self.kv_proj = nn.ModuleList(nn.Linear(self.d_model, sum(self.sizes[1:]), bias=False) for _ in range(count))
        self.beta_proj = nn.Linear(self.d_model, count * self.heads, bias=False)
        self.decay_proj = nn.Linear(self.d_model, count * self.heads, bias=False)
        self.conv = ShortConvolution(sum(self.sizes), self.conv_size, "silu")
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1e-4, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.output = GatedOutput(self.d_model, self.heads, d_v)

    def mix(self, x: Tensor, state: RecurrentState | None, return_state: bool) -> tuple[Tensor, RecurrentState | None]:
        routes = route(self.router_proj(x), self.top_k)
        q, beta, log_decay = self.q_proj(x), *self._rates(x)
        memory, conv = (None, None) if state is None else (state.memory, state.conv)
        routed, own = slice(0, self.memories * self.heads), slice(self.memories * self.heads, None)

        x_sent, q_sent = routes.send(x), routes.send(q)
        kv = torch.stack([self.kv_proj[m](x_sent[:, m]) for m in range(self.memories)], dim=1)
        read, memory_routed, conv_routed = self._recur(
            torch.cat([q_sent, kv], dim=-1),
            routes.send_own(beta[..., routed]),
            routes.send_own(log_decay[..., routed]),
            routes.counts,
            None if memory is None else memory[:, routed],
            None if conv is None else conv[:, : self.memories],
        )
        y = routes.collect(read)
        memories, convs = [memory_routed], [conv_routed]
        if self.shared:
            everything = torch.cat([q, self.kv_proj[-1](x)], dim=-1).unsqueeze(1)
            read, *after = self._recur(
                everything,
                beta[..., own].unsqueeze(1),
                log_decay[..., own].unsqueeze(1),
                torch.full_like(routes.counts[:, :1], x.shape[1]),
                None if memory is None else memory[:, own],
                None if conv is None else conv[:, self.memories :],
            )
            y = y + read.squeeze(1)
            memories, convs = [*memories, after[0]], [*convs, after[1]]
        y = self.output(split_heads(y, self.heads), x)
        if not return_state:
            return y, None
        parts = {"memory": torch.cat(memories, dim=1), "conv": torch.cat(convs, dim=1)}
        return y, self.next_state(RecurrentState, x, state, **parts)

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """beta and the logarithm of the decay, `[batch, time, memories * heads]`, shared memory last."""
        precision = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(split_heads(self.decay_proj(x).to(precision), len(self.kv_proj)) + self.dt_bias.to(precision))
        return self.beta_proj(x).to(precision).sigmoid(), (-self.A_log.to(precision).exp() * step).flatten(2)

    def _recur(
        self,
        qkv: Tensor,
        beta: Tensor,
        log_decay: Tensor,
        counts: Tensor,
        memory: Tensor | None,
        conv: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gated delta rule in each of some memories, over sequences of their own.

        qkv `[batch, memories, length, channels]`; beta, log_decay `[batch, memories, length, heads]`; counts
        `[batch, memories]` of the tokens that each sequence has, the rest does nothing.
        Returns what is read `[batch, memories, length, heads * d_v]`, the memories, and the last inputs of the
        convolution.
        """
        batch, count, length, _ = qkv.shape
        if conv is None:
            conv = qkv.new_zeros(batch, count, self.conv_size - 1, qkv.shape[3])
        joined = torch.cat([conv.to(qkv.dtype), qkv], dim=2)
        last = counts[..., None] + torch.arange(self.conv_size - 1, device=qkv.device)
        conv_after = joined.gather(2, last[..., None].expand(-1, -1, -1, qkv.shape[3]))
        qkv = self.conv(qkv.flatten(0, 1), conv.flatten(0, 1))[0].unflatten(0, (batch, count))

        idle = torch.arange(length, device=qkv.device)[:, None] >= counts[..., None, None]
        q, k, v = (
            split_heads(part, self.heads).transpose(1, 2).flatten(2, 3) for part in qkv.split(self.sizes, dim=-1)
        )
        beta, log_decay = (rate.masked_fill(idle, 0).transpose(1, 2).flatten(2) for rate in (beta, log_decay))
        read, memory_after = linear_recurrence(
            unit_length(q),
            unit_length(k),
            v,
            log_decay=log_decay,
            beta=beta,
            chunk_size=self.chunk_size,
            state=memory,
            return_state=True,
            backend=self.backend,
        )
        assert memory_after is not None  # it was asked for
        return read.unflatten(2, (count, -1)).transpose(1, 2).flatten(3), memory_after, conv_after
