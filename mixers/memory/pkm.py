"""PKM: a slow product-key memory in the place of a feed-forward (Lample et al. 2019; Berges et al. 2024).

Notable: a table of `n_subkeys**2` learned values of which a token touches `heads * top_k`, so parameters grow without
the work growing with them. It mixes nothing over time: what it knows was learned in training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm
from ..ops.pkm import OP, Score, pkm
from ..options import option
from ..registry import register_mixer
from ..state import MixerState


@register_mixer
class PKM(Mixer):
    """Product-key memory (arXiv 1907.05242) as a feed-forward: `y = sum of weights * values[slots]`, see `ops.pkm.pkm`.

    The sizes are those of the paper: 4 heads of queries of width 512 that read 32 slots each, of 512 * 512.
    query_norm: `rms` normalises the queries of all heads together, as the baseline of FwPKM (arXiv 2601.00671) does in
    place of the batch norm of the paper, which is not causal.
    gated: from Memory Layers at Scale (arXiv 2412.09764); so has that baseline.
    value_learning_rate_scale is for optimizers that ask `parameter_groups`: a slot is seldom read, so the paper gives
    the values 4 times the rate of the rest. They get no weight decay, which would wear down what is not read.
    sparse_gradient needs an optimizer for the values such as `torch.optim.SparseAdam`; the AdamW of the benchmarks is
    none.
    """

    card = MixerCard(
        name="pkm",
        family="memory",
        summary="Learned product-key memory in the place of a feed-forward: a big table, few slots per token",
        paper="Lample et al., Large Memory Layers with Product Keys",
        arxiv="1907.05242",
        year=2019,
        state_growth="constant",
        recurrence="o_t = sum_s softmax_s(q_t . key_s) value_s over the best k of n^2 slots; nothing over time",
        limits="mixes nothing over time: it stands in the place of a feed-forward",
        ops=(OP,),
        role="feed_forward",
        low_precision_tolerance=0.2,  # rounded queries now and then choose another slot
    )

    heads: int = option("heads, each with sub-keys of its own; the values are shared", default=4, least=1, small=2)
    top_k: int = option("slots that a head reads", default=32, least=1, small=4)
    n_subkeys: int = option("sub-keys of each half; the table has n_subkeys^2 slots", default=512, least=1, small=8)
    d_k: int = option("width of a head's query, even", default=512, least=2, small=16)
    d_v: int = option("width of the values; None: d_model; else a linear map follows", default=None, least=1)
    score: Score = option("of a query half and a sub-key: inner product, or inverse distance", default="dot")
    query_norm: Literal["rms", "none"] = option("of the queries of all heads together", default="rms")
    gated: bool = option("`(y * silu(x W1)) W2` instead of y", default=False)
    value_learning_rate_scale: float = option("learning rate of the values over the model's", default=4.0, above=0)
    sparse_gradient: bool = option("the gradient of the values is a sparse tensor", default=False, speed_only=True)

    def build(self) -> None:
        d_model, heads, d_k, n_subkeys = self.d_model, self.heads, self.d_k, self.n_subkeys
        self.d_v = d_v = d_model if self.d_v is None else self.d_v
        if d_k % 2:
            raise ValueError(f"pkm needs an even d_k, got {d_k}")
        if self.top_k > n_subkeys:
            raise ValueError(f"top_k must be in 1..n_subkeys, got {self.top_k} and n_subkeys {n_subkeys}")
        self.q_proj = nn.Linear(d_model, heads * d_k, bias=False)
        self.q_norm = RMSNorm(heads * d_k) if self.query_norm == "rms" else None
        self.keys = nn.Parameter(torch.empty(heads, 2, n_subkeys, d_k // 2).uniform_(-(d_k**-0.5), d_k**-0.5))
        self.values = nn.Parameter(torch.empty(n_subkeys**2, d_v).normal_(std=d_v**-0.5))
        self.g_proj = nn.Linear(d_model, d_v, bias=False) if self.gated else None
        self.o_proj = nn.Linear(d_v, d_model, bias=False) if self.gated or d_v != d_model else None
        for linear in filter(None, (self.g_proj, self.o_proj)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def mix(self, x: Tensor, state: MixerState | None, return_state: bool) -> tuple[Tensor, MixerState | None]:
        queries = self.q_proj(x)
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        y = pkm(
            queries.unflatten(-1, (self.heads, -1)),
            self.keys,
            self.values,
            top_k=self.top_k,
            score=self.score,
            sparse_gradient=self.sparse_gradient,
            backend=self.backend,
        ).retrieved
        if self.g_proj is not None:
            y = y * F.silu(self.g_proj(x))
        if self.o_proj is not None:
            y = self.o_proj(y.to(x.dtype))
        return y.to(x.dtype), self.next_state(MixerState, x, state) if return_state else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {
                "params": [self.values],
                "learning_rate_scale": self.value_learning_rate_scale,
                "weight_decay": 0.0,
                "sparse_gradient": self.sparse_gradient,
            }
        ]
