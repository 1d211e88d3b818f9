"""The layer around a memory that the sequence itself rewrites, chunk by chunk: `Wo n4(g * r + (1 - g) * v)`.

Notable: `FwPKM` and `FwMLP` share all of it, so that a comparison of the two is one of their memories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..interface import Mixer
from ..layers import RMSNorm
from ..ops.chunks import Chunks
from ..state import MixerState


class FastWeightMixer(Mixer):
    """Projections of Zhao & Jones, arXiv 2601.00671: queries `Wq n1(x)`, targets `Wv n2(x)` that are then normalised,
    gates `sigmoid(wg . n3(x))`; what the memory retrieves is mixed with the targets by the gates and projected back."""

    def add_projections(
        self,
        d_queries: int,
        d_v: int,
        *,
        gate: bool = True,
        normalise_targets: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Create the modules. normalise_targets: `standardise` if not given."""
        d_model = self.d_model
        self.normalise_targets = normalise_targets or standardise
        self.q_norm, self.q_proj = RMSNorm(d_model), nn.Linear(d_model, d_queries, bias=False)
        self.v_norm, self.v_proj = RMSNorm(d_model), nn.Linear(d_model, d_v, bias=False)
        self.gate_norm = RMSNorm(d_model) if gate else None
        self.gate_proj = nn.Linear(d_model, 1) if gate else None
        self.o_norm, self.o_proj = RMSNorm(d_v), nn.Linear(d_v, d_model, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries `[batch, time, d_queries]`, targets `[batch, time, d_v]` and gates `[batch, time]`, or None."""
        queries, targets = self.q_proj(self.q_norm(x)), self.normalise_targets(self.v_proj(self.v_norm(x)))
        if self.gate_proj is None or self.gate_norm is None:
            return queries, targets, None
        return queries, targets, self.gate_proj(self.gate_norm(x)).squeeze(-1).to(targets.dtype).sigmoid()

    def combine(self, x: Tensor, retrieved: Tensor, targets: Tensor, gates: Tensor | None) -> Tensor:
        """The output for `x [batch, time, d_model]`."""
        if gates is not None:
            retrieved = gates[..., None] * retrieved + (1 - gates[..., None]) * targets
        return self.o_proj(self.o_norm(retrieved.to(x.dtype)))

    def finish(self, state: Any) -> Any:
        """Let the unfinished chunk rewrite the memory, as at the end of a text; the next text starts at position 0."""
        raise NotImplementedError

    def restart(self, state: MixerState) -> MixerState:
        """See `Mixer.restart`: the memory stays, with the unfinished chunk written into it."""
        return self.finish(state)

    def max_pending_nbytes(self, batch: int, chunks: Chunks, itemsize: int) -> int:
        """The most that a state holds of tokens that are still to be written."""
        pending = 2 * (chunks.chunk_size + chunks.lookahead) + 16  # spare room of growable buffers
        return batch * pending * (self.q_proj.out_features + self.v_proj.out_features + 1) * itemsize


def standardise(x: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) standard deviation over the features, at least in float32."""
    x = at_least_float32(x)
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
