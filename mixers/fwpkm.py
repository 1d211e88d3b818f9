"""FwPKM: a sparse key-value memory that the sequence itself rewrites, chunk by chunk (Zhao & Jones, arXiv 2601.00671).

Notable: the memory has `n_subkeys**2` slots but a token touches `heads * top_k` of them; its update is one gradient
step per chunk, so a key met once is found again however far back it was; tokens of a chunk do not see each other in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .inspection import recorder
from .interface import Mixer, MixerCard
from .ops.fwpkm import FwpkmOptions, FwpkmState, finish, fwpkm
from .ops.fwpkm.problem import Boundary, KeyObjective, Scope, Score
from .registry import register_mixer


@register_mixer
class FwPKM(Mixer):
    """Fast-weight product key memory with its projections: `Wo n4(g * r + (1 - g) * v)`, see `mixers.ops.fwpkm.fwpkm`.

    `r` is what the memory retrieves for the query `Wq n1(x)`; `v = standardise(Wv n2(x))` is what it learns to return
    for the query `lookahead` tokens before; `g = sigmoid(wg . n3(x))` gates both. The defaults are the released sizes.

    d_k, d_v: width of queries and of slots. n_subkeys: codebook size. learning_rate: of the memory's own steps.
    initial_memory: the slots before a sequence are `random` (fixed), `zero`, or `learned`; the keys are always learned.
    """

    card = MixerCard(
        name="fwpkm",
        family="fast-weight memory",
        summary="Sparse product-key memory, rewritten once a chunk by a gradient step",
        paper="Zhao & Jones, Fast-weight Product Key Memory",
        arxiv="2601.00671",
        year=2026,
        state_growth="bounded",
        backends=("torch", "reference"),
        parallel=False,
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 1,
        d_k: int = 512,
        d_v: int = 512,
        n_subkeys: int = 512,
        top_k: int = 8,
        chunk_size: int = 512,
        lookahead: int = 1,
        score: Score = "idw",
        temperature: float = 1.0,
        learning_rate: float = 1.0,
        address_weight: float = 1.0,
        key_objective: KeyObjective = "address",
        boundary: Boundary = "carry",
        scope: Scope = "sequence",
        initial_memory: Literal["random", "zero", "learned"] = "random",
        backend: str = "auto",
    ) -> None:
        self.settings: dict[str, Any] = {
            "top_k": top_k,
            "chunk_size": chunk_size,
            "lookahead": lookahead,
            "score": score,
            "temperature": temperature,
            "learning_rate": learning_rate,
            "address_weight": address_weight,
            "key_objective": key_objective,
            "boundary": boundary,
            "scope": scope,
        }
        sizes = {"heads": heads, "d_k": d_k, "d_v": d_v, "n_subkeys": n_subkeys}
        super().__init__(d_model, **sizes, **self.settings, initial_memory=initial_memory, backend=backend)
        FwpkmOptions(**self.settings)  # refuses what does not fit now, not at the first call
        if d_k % 2 or d_v < 2 or min(sizes.values()) < 1:  # one feature has no standard deviation
            raise ValueError(f"fwpkm needs an even d_k, d_v of at least 2 and other sizes of at least 1, got {sizes}")
        if top_k > n_subkeys:
            raise ValueError(f"top_k must not exceed n_subkeys, got {top_k} and {n_subkeys}")
        self.heads, self.backend = heads, backend
        self.query_norm, self.query = nn.RMSNorm(d_model), nn.Linear(d_model, heads * d_k, bias=False)
        self.target_norm, self.target = nn.RMSNorm(d_model), nn.Linear(d_model, d_v, bias=False)
        self.gate_norm, self.gate = nn.RMSNorm(d_model), nn.Linear(d_model, 1)
        self.out_norm, self.out = nn.RMSNorm(d_v), nn.Linear(d_v, d_model, bias=False)
        self.keys = nn.Parameter(torch.empty(heads, 2, n_subkeys, d_k // 2).uniform_(-(d_k**-0.5), d_k**-0.5))
        values = torch.zeros(n_subkeys**2, d_v)
        if initial_memory != "zero":
            values.normal_(std=d_v**-0.5)
        if initial_memory == "learned":
            self.values = nn.Parameter(values)
        elif initial_memory in ("random", "zero"):
            self.register_buffer("values", values, persistent=initial_memory == "random")
        else:
            raise ValueError(f"initial_memory must be random, zero or learned, got {initial_memory!r}")

    def mix(self, x: Tensor, state: FwpkmState | None, return_state: bool) -> tuple[Tensor, FwpkmState | None]:
        queries = self.query(self.query_norm(x)).unflatten(-1, (self.heads, -1))
        targets = standardise(self.target(self.target_norm(x)))
        gates = self.gate(self.gate_norm(x)).squeeze(-1).to(targets.dtype).sigmoid()
        output = fwpkm(
            queries,
            targets,
            gates,
            self.keys,
            self.values,
            **self.settings,
            state=state,
            return_state=return_state,
            backend=self.backend,
        )
        if (look := recorder()) is not None:
            look(self, x, state, gates, output)
        mixed = gates[..., None] * output.retrieved + (1 - gates[..., None]) * targets
        y = self.out(self.out_norm(mixed.to(x.dtype)))
        return y, output.state and replace(output.state, signature=self.signature)

    def finish(self, state: FwpkmState) -> FwpkmState:
        """Let the unfinished chunk rewrite the memory, as at the end of a text; the next text starts at position 0."""
        self.check_state(state)
        return finish(state, self.keys, self.values, backend=self.backend, **self.settings)

    def restart(self, state: FwpkmState) -> FwpkmState:
        """See `Mixer.restart`: the memory stays, with the unfinished chunk written into it."""
        return self.finish(state)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        memories = batch if self.settings["scope"] == "sequence" else 1
        weight_bytes = torch.promote_types(self.values.dtype, torch.float32).itemsize
        slots, d_v = self.values.shape
        table = slots * (d_v * weight_bytes + torch.long.itemsize)
        pending = 2 * (self.settings["chunk_size"] + self.settings["lookahead"]) + 16  # spare room of growable buffers
        token = (self.heads * self.keys.shape[-1] * 2 + d_v + 1) * weight_bytes
        return memories * (table + self.keys.numel() * weight_bytes) + batch * pending * token


def standardise(x: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) standard deviation over the features, at least in float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
