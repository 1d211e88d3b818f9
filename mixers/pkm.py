"""PKM: a slow product-key memory in the place of a feed-forward (Lample et al. 2019; Berges et al. 2024).

Notable: a table of `n_subkeys**2` learned values of which a token touches `heads * top_k`, so parameters grow without
the work growing with them. It mixes nothing over time: what it knows was learned in training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Mixer, MixerCard
from .layers import RMSNorm
from .ops.pkm import Score, pkm
from .registry import register_mixer
from .state import MixerState


@register_mixer
class PKM(Mixer):
    """Product-key memory (arXiv 1907.05242) as a feed-forward: `y = sum of weights * values[slots]`, see `ops.pkm.pkm`.

    heads, top_k, n_subkeys and d_k are those of the paper: 4 heads of queries of width 512 that read 32 slots each, of
    512 * 512. d_v: width of the values; None: d_model. If it differs, a linear map follows.
    query_norm: `rms` normalises the queries of all heads together, as the baseline of FwPKM
    (arXiv 2601.00671) does in place of the batch norm of the paper, which is not causal; `none` leaves them.
    gated: `(y * silu(x W1)) W2` instead of `y`, from Memory Layers at Scale (arXiv 2412.09764); so has that baseline.
    value_learning_rate_scale: the values' learning rate over that of the model, for optimizers that ask
    `parameter_groups`. A slot is seldom read, so the paper gives the values 4 times the rate of the rest (1e-3 and
    2.5e-4). They get no weight decay, which would wear down what is not read.
    sparse_gradient: see `ops.pkm.pkm`; it needs an optimizer for the values such as `torch.optim.SparseAdam`; the
    AdamW of the benchmarks is none.
    """

    card = MixerCard(
        name="pkm",
        family="product-key memory",
        summary="Learned product-key memory in the place of a feed-forward: a big table, few slots a token",
        paper="Lample et al., Large Memory Layers with Product Keys",
        arxiv="1907.05242",
        year=2019,
        state_growth="constant",
        backends=("torch", "reference"),
        role="feed_forward",
        low_precision_tolerance=0.2,  # rounded queries now and then choose another slot
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 4,
        top_k: int = 32,
        n_subkeys: int = 512,
        d_k: int = 512,
        d_v: int | None = None,
        score: Score = "dot",
        query_norm: Literal["rms", "none"] = "rms",
        gated: bool = False,
        value_learning_rate_scale: float = 4.0,
        sparse_gradient: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            d_model,
            heads=heads,
            top_k=top_k,
            n_subkeys=n_subkeys,
            d_k=d_k,
            d_v=d_v,
            score=score,
            query_norm=query_norm,
            gated=gated,
            value_learning_rate_scale=value_learning_rate_scale,
            sparse_gradient=sparse_gradient,
            backend=backend,
        )
        d_v = d_model if d_v is None else d_v
        if d_k % 2 or min(heads, d_k, d_v, n_subkeys) < 1:
            raise ValueError(
                "pkm needs an even d_k and sizes of at least 1, "
                f"got heads={heads}, d_k={d_k}, d_v={d_v}, n_subkeys={n_subkeys}"
            )
        if not 1 <= top_k <= n_subkeys:
            raise ValueError(f"top_k must be in 1..n_subkeys, got {top_k} and n_subkeys {n_subkeys}")
        if score not in ("dot", "idw") or query_norm not in ("rms", "none"):
            raise ValueError(f"score must be dot or idw and query_norm rms or none, got {score!r} and {query_norm!r}")
        if not value_learning_rate_scale > 0:
            raise ValueError(f"value_learning_rate_scale must be positive, got {value_learning_rate_scale}")
        self.heads, self.top_k, self.score, self.backend = heads, top_k, score, backend
        self.value_learning_rate_scale, self.sparse_gradient = value_learning_rate_scale, sparse_gradient
        self.query = nn.Linear(d_model, heads * d_k, bias=False)
        self.query_norm = RMSNorm(heads * d_k) if query_norm == "rms" else None
        self.keys = nn.Parameter(torch.empty(heads, 2, n_subkeys, d_k // 2).uniform_(-(d_k**-0.5), d_k**-0.5))
        self.values = nn.Parameter(torch.empty(n_subkeys**2, d_v).normal_(std=d_v**-0.5))
        self.gate = nn.Linear(d_model, d_v, bias=False) if gated else None
        self.out = nn.Linear(d_v, d_model, bias=False) if gated or d_v != d_model else None
        for linear in filter(None, (self.gate, self.out)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def mix(self, x: Tensor, state: MixerState | None, return_state: bool) -> tuple[Tensor, MixerState | None]:
        queries = self.query(x)
        if self.query_norm is not None:
            queries = self.query_norm(queries)
        y = pkm(
            queries.unflatten(-1, (self.heads, -1)),
            self.keys,
            self.values,
            top_k=self.top_k,
            score=self.score,
            sparse_gradient=self.sparse_gradient,
            backend=self.backend,
        ).retrieved
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        if self.out is not None:
            y = self.out(y.to(x.dtype))
        position = (0 if state is None else state.position) + x.shape[1]
        return y.to(x.dtype), MixerState(self.signature, x.shape[0], position)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {
                "params": [self.values],
                "learning_rate_scale": self.value_learning_rate_scale,
                "weight_decay": 0.0,
                "sparse_gradient": self.sparse_gradient,
            }
        ]
