"""FwMLP: a dense MLP that the sequence itself trains, chunk by chunk; the baseline of FwPKM (arXiv 2601.00671).

Notable: as `fwpkm` but for the memory, so the two compare sparse with dense fast weights. Every token moves every
weight, so later chunks overwrite earlier ones, and a sequence's state is a whole MLP from its first rewrite on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .fwpkm import standardise
from .interface import Mixer, MixerCard
from .ops.fwmlp import FwmlpState, finish, fwmlp
from .registry import register_mixer


@register_mixer
class FwMLP(Mixer):
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
        if chunk_size < 1 or not 0 <= lookahead < chunk_size:
            raise ValueError(
                f"lookahead must be at least 0 and less than chunk_size, got {lookahead} and chunk_size {chunk_size}"
            )
        if not learning_rate >= 0:
            raise ValueError(f"learning_rate must not be negative, got {learning_rate}")
        self.gated_loss, self.backend = gated_loss, backend
        self.query_norm, self.query = nn.RMSNorm(d_model), nn.Linear(d_model, d_k, bias=False)
        self.target_norm, self.target = nn.RMSNorm(d_model), nn.Linear(d_model, d_v, bias=False)
        self.gate_norm, self.gate = nn.RMSNorm(d_model), nn.Linear(d_model, 1)
        self.out_norm, self.out = nn.RMSNorm(d_v), nn.Linear(d_v, d_model, bias=False)
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
        queries = self.query(self.query_norm(x))
        targets = standardise(self.target(self.target_norm(x)))
        gates = self.gate(self.gate_norm(x)).squeeze(-1).to(targets.dtype).sigmoid()
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
        mixed = gates[..., None] * output.retrieved + (1 - gates[..., None]) * targets
        y = self.out(self.out_norm(mixed.to(x.dtype)))
        return y, output.state and replace(output.state, signature=self.signature)

    def finish(self, state: FwmlpState) -> FwmlpState:
        """Let the unfinished chunk rewrite the memory, as at the end of a text; the next text starts at position 0."""
        self.check_state(state)
        return finish(state, self.initial_weights(), backend=self.backend, **self.settings)

    def restart(self, state: FwmlpState) -> FwmlpState:
        """See `Mixer.restart`: the memory stays, with the unfinished chunk written into it."""
        return self.finish(state)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        weights = self.initial_weights()
        weight_bytes = torch.promote_types(weights[0].dtype, torch.float32).itemsize
        pending = 2 * (self.settings["chunk_size"] + self.settings["lookahead"]) + 16  # spare room of growable buffers
        token = self.query.out_features + self.target.out_features + 1
        return batch * weight_bytes * (sum(w.numel() for w in weights) + pending * token)
