"""FwMLP: a dense MLP that the sequence itself trains, chunk by chunk; the baseline of FwPKM (arXiv 2601.00671).

Notable: as `fwpkm` but for the memory, so the two compare sparse with dense fast weights. Every token moves every
weight, so later chunks overwrite earlier ones, and a sequence's state is a whole MLP from its first rewrite on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..interface import MixerCard
from ..ops.fwmlp import OP, FwmlpOptions, FwmlpState, finish, fwmlp
from ..options import option
from ..registry import register_mixer
from ..state import MixerState
from .fast_weights import FastWeightMixer


@dataclass(frozen=True, eq=False)
class FwMLPState(MixerState):
    """fast: the weights, and the tokens of the unfinished chunk."""

    fast: FwmlpState

    @property
    def weights(self) -> tuple[Tensor, ...] | None:
        """The six tensors of fast weights, batch first; None until the first rewrite."""
        return self.fast.weights


@register_mixer
class FwMLP(FastWeightMixer):
    """Fast-weight SwiGLU MLP with the projections of `FwPKM`: `Wo n4(g * r + (1 - g) * v)`, see `mixers.ops.fwmlp`.

    `r` is what the MLP returns for the query `Wq n1(x)`; `v = standardise(Wv n2(x))` is what it learns to return for
    the query `lookahead` tokens before; `g = sigmoid(wg . n3(x))` gates both. The default sizes are the released ones.
    gated_loss: weigh the error with `g`, as FwPKM does; the released code of this baseline does not.
    The weights with which a sequence begins are learned.
    """

    card = MixerCard(
        name="fwmlp",
        family="memory",
        summary="Dense SwiGLU MLP as fast weights, rewritten once a chunk by a gradient step: the baseline of FwPKM",
        paper="Zhao & Jones, Fast-weight Product Key Memory",
        arxiv="2601.00671",
        year=2026,
        state_growth="bounded",
        recurrence="W_{c+1} = W_c - eta grad mean_t g_t ||f(q_t; W_c) - v_{t+1}||^2 over chunk c,  r_t = f(q_t; W_c)",
        limits="tokens of a chunk do not see each other in the memory",
        ops=(OP,),
        parallel=False,
    )

    d_k: int = option("width of the queries", default=512, least=1, small=16)
    d_v: int = option("width of the targets", default=512, least=2, small=16)  # one feature has no deviation
    d_hidden: int = option("width inside the MLP", default=2304, least=1, small=32)
    chunk_size: int = option("tokens between rewrites", default=512, least=1, small=16, piece=True)
    lookahead: int = option("tokens from a query to its target", default=1, least=0)
    learning_rate: float = option(
        "of the memory's own steps, on the mean over pairs and features of the squared error", default=0.1, least=0
    )
    gated_loss: bool = option("weigh the error with the gates", default=True)

    def build(self) -> None:
        FwmlpOptions(**self.settings)  # refuses what does not fit now, not at the first call
        self.add_projections(self.d_k, self.d_v)
        self.memory_up, self.memory_gate = nn.Linear(self.d_k, self.d_hidden), nn.Linear(self.d_k, self.d_hidden)
        self.memory_down = nn.Linear(self.d_hidden, self.d_v)
        for linear in self._memory():
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the op."""
        return {name: getattr(self, name) for name in ("chunk_size", "lookahead", "learning_rate")}

    def _memory(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.memory_up, self.memory_gate, self.memory_down

    def initial_weights(self) -> tuple[Tensor, ...]:
        """The six tensors with which every sequence begins, in the order of `mixers.ops.fwmlp.Weights`."""
        return tuple(t for linear in self._memory() for t in (linear.weight, linear.bias))

    def mix(self, x: Tensor, state: FwMLPState | None, return_state: bool) -> tuple[Tensor, FwMLPState | None]:
        queries, targets, gates = self.project(x)
        output = fwmlp(
            queries,
            targets,
            gates if self.gated_loss else None,
            self.initial_weights(),
            **self.settings,
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.combine(x, output.retrieved, targets, gates)
        return y, self.next_state(FwMLPState, x, state, fast=output.state) if return_state else None

    def finish(self, state: FwMLPState) -> FwMLPState:
        self.check_state(state)
        fast = finish(state.fast, self.initial_weights(), backend=self.backend, **self.settings)
        return replace(state, position=0, fast=fast)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        weights = self.initial_weights()
        weight_bytes = torch.promote_types(weights[0].dtype, torch.float32).itemsize
        pending = self.max_pending_nbytes(batch, FwmlpOptions(**self.settings).chunks, weight_bytes)
        return batch * weight_bytes * sum(w.numel() for w in weights) + pending
