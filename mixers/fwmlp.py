"""FwMLP: a dense MLP that the sequence itself trains, chunk by chunk; the baseline of FwPKM (arXiv 2601.00671).

Notable: as `fwpkm` but for the memory, so the two compare sparse with dense fast weights. Every token moves every
weight, so later chunks overwrite earlier ones, and a sequence's state is a whole MLP from its first rewrite on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .fast_weights import FastWeightMixer
from .interface import MixerCard
from .ops.fwmlp import FwmlpOptions, FwmlpState, finish, fwmlp
from .registry import register_mixer


@register_mixer
class FwMLP(FastWeightMixer):
    """Fast-weight SwiGLU MLP with the projections of `FwPKM`: `Wo n4(g * r + (1 - g) * v)`, see `mixers.ops.fwmlp`.

    `r` is what the MLP returns for the query `Wq n1(x)`; `v = standardise(Wv n2(x))` is what it learns to return for
    the query `lookahead` tokens before; `g = sigmoid(wg . n3(x))` gates both.

    d_k, d_hidden, d_v: widths of the MLP; the defaults are the released sizes. learning_rate: of its own steps, on the
    mean over a chunk's pairs and features of the squared error. gated_loss: weight that error with `g`, as FwPKM does;
    the released code of this baseline does not. The weights with which a sequence begins are learned.
    """

    card = MixerCard(
        name="fwmlp",
        family="fast-weight memory",
        summary="Dense SwiGLU MLP as fast weights, rewritten once a chunk by a gradient step: the baseline of FwPKM",
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
        d_k: int = 512,
        d_v: int = 512,
        d_hidden: int = 2304,
        chunk_size: int = 512,
        lookahead: int = 1,
        learning_rate: float = 0.1,
        gated_loss: bool = True,
        backend: str = "auto",
    ) -> None:
        self.settings: dict[str, Any] = {
            "chunk_size": chunk_size,
            "lookahead": lookahead,
            "learning_rate": learning_rate,
        }
        sizes = {"d_k": d_k, "d_v": d_v, "d_hidden": d_hidden}
        super().__init__(d_model, **sizes, **self.settings, gated_loss=gated_loss, backend=backend)
        if d_v < 2 or min(sizes.values()) < 1:  # one feature has no standard deviation
            raise ValueError(f"fwmlp needs d_v of at least 2 and other sizes of at least 1, got {sizes}")
        FwmlpOptions(**self.settings)  # refuses what does not fit now, not at the first call
        self.gated_loss, self.backend = gated_loss, backend
        self.add_projections(d_k, d_v)
        self.memory_up, self.memory_gate = nn.Linear(d_k, d_hidden), nn.Linear(d_k, d_hidden)
        self.memory_down = nn.Linear(d_hidden, d_v)
        for linear in self._memory():
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def _memory(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.memory_up, self.memory_gate, self.memory_down

    def initial_weights(self) -> tuple[Tensor, ...]:
        """The six tensors with which every sequence begins, in the order of `mixers.ops.fwmlp.Weights`."""
        return tuple(t for linear in self._memory() for t in (linear.weight, linear.bias))

    def mix(self, x: Tensor, state: FwmlpState | None, return_state: bool) -> tuple[Tensor, FwmlpState | None]:
        queries, targets, gates = self.project(x)
        output = fwmlp(
            queries,
            targets,
            gates if self.gated_loss else None,
            self.initial_weights(),
            **self.settings,
            state=state,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.combine(x, output.retrieved, targets, gates)
        return y, output.state and replace(output.state, signature=self.signature)

    def finish(self, state: FwmlpState) -> FwmlpState:
        self.check_state(state)
        return finish(state, self.initial_weights(), backend=self.backend, **self.settings)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        weights = self.initial_weights()
        weight_bytes = torch.promote_types(weights[0].dtype, torch.float32).itemsize
        pending = self.max_pending_nbytes(batch, FwmlpOptions(**self.settings).chunks, weight_bytes)
        return batch * weight_bytes * sum(w.numel() for w in weights) + pending
