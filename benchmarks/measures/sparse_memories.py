"""What the sparse memories of a model do while it reads: gates, slots in use, and reads of what was written before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ...mixers.memory.fwpkm import FwPKM, FwPKMState
    from ...mixers.ops.fwpkm import FwpkmOutput, FwpkmState

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 1000  # of gates, which lie in 0..1
_NEVER = 1 << 60


class SparseMemories:
    """Counts along while a model reads texts once, for `watch_fwpkm`; nothing grows with the length of the text.

    asked: bool `[batch, time]`, the tokens at which a question is answered; their gates are counted apart as well.
    """

    def __init__(self, model: nn.Module, asked: Tensor) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.asked = asked
        self.layers: dict[str, _Layer] = {}

    def __call__(
        self, layer: FwPKM, x: Tensor, state: FwPKMState | None, gates: Tensor | None, output: FwpkmOutput
    ) -> None:
        name, start = self.names.get(layer), 0 if state is None else state.position
        if name is None:  # a layer of another model
            return
        known = self.layers.setdefault(name, _Layer(layer, len(x)))
        if start == known.read:  # else it is read again
            asked = self.asked[:, start : start + x.shape[1]].to(x.device)
            known.count(gates, asked, output)

    def rows(self) -> list[dict[str, Any]]:
        """For each layer: `layer` (its name), `n_slots`, `tokens` and `sequences` (read); of its gates, None without,
        `gate` (of all tokens) and `gate_asked` (of those that answer), each a `mean` and `quantiles`.

        Of a memory, the mean over them: `written` (share of the slots that were written), `hits` (share of the
        accesses that found a slot which an earlier chunk had addressed and written), `used` (slots accessed),
        `perplexity` (exponential of the entropy of the accesses: used alike, so many slots would be as even) and
        `accesses` (to a used slot).
        """
        return [{"layer": name, **layer.row()} for name, layer in self.layers.items()]


class _Layer:
    def __init__(self, layer: FwPKM, batch: int) -> None:
        self.layer, self.batch, self.read = layer, batch, 0
        self.n_slots = len(layer.values)
        self.memories = batch if layer.scope == "sequence" else 1
        device = layer.values.device
        self.counts = torch.zeros(self.memories * self.n_slots, dtype=torch.long, device=device)
        self.written_by = torch.full_like(self.counts, _NEVER)  # the first chunk that wrote each slot
        self.found = torch.zeros((), dtype=torch.long, device=device)
        self.after: FwpkmState | None = None
        self.gates, self.gates_asked = _Gates(device), _Gates(device)

    def count(self, gates: Tensor | None, asked: Tensor, output: FwpkmOutput) -> None:
        batch, time = output.slots.shape[:2]
        places = torch.arange(self.read, self.read + time, device=output.slots.device)
        memory = torch.arange(batch, device=places.device) * self.n_slots if self.memories > 1 else places.new_zeros(1)
        slots = output.slots + memory[:, None, None, None]
        self.counts += torch.bincount(slots.flatten(), minlength=len(self.counts))
        own, writes = self._chunks(places)
        self.written_by.scatter_reduce_(0, slots.flatten(), writes.expand_as(slots).flatten(), "amin")
        self.found += (self.written_by[slots] < own).sum()
        if gates is not None:
            self.gates.count(gates)
            self.gates_asked.count(gates[asked])
        self.after = output.state
        self.read += time

    def _chunks(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk in which each token reads, and the one at whose end it is written, `[time, 1, 1]` each."""
        layer = self.layer
        own, arrived = places // layer.chunk_size, (places + layer.lookahead) // layer.chunk_size
        late = arrived if layer.boundary == "carry" else torch.full_like(arrived, _NEVER)
        writes = torch.where(arrived == own, own, late)
        return own[:, None, None], writes[:, None, None]

    def row(self) -> dict[str, Any]:
        counts = self.counts.view(self.memories, self.n_slots).double()
        share = counts / counts.sum(1, keepdim=True)
        perplexity = torch.special.entr(share).sum(1).exp()
        used, accesses = (counts > 0).sum(1).double(), counts.sum(1)
        return {
            "n_slots": self.n_slots,
            "tokens": self.read,
            "sequences": self.batch,
            "gate": self.gates.described(),
            "gate_asked": self.gates_asked.described(),
            "written": 0.0 if self.after is None else len(self.after.slots) / len(self.counts),
            "hits": float(self.found / accesses.sum()),
            "used": float(used.mean()),
            "perplexity": float(perplexity.mean()),
            "accesses": float((accesses / used).mean()),
        }


class _Gates:
    """A histogram, so that it does not grow with the text; quantiles are the middles of its bins."""

    def __init__(self, device: torch.device) -> None:
        self.bins = torch.zeros(BINS, dtype=torch.long, device=device)
        self.total = torch.zeros((), dtype=torch.double, device=device)

    def count(self, gates: Tensor) -> None:
        places = (gates.flatten().float() * BINS).long().clamp(0, BINS - 1)
        self.bins += torch.bincount(places, minlength=BINS)
        self.total += gates.double().sum()

    def described(self) -> dict[str, Any] | None:
        number = int(self.bins.sum())
        if not number:
            return None
        points = torch.tensor([number * q for q in QUANTILES], dtype=torch.double)
        places = torch.searchsorted(self.bins.cumsum(0).double().cpu(), points).clamp(max=BINS - 1)
        quantiles = [(place + 0.5) / BINS for place in places.tolist()]
        return {"mean": round(float(self.total) / number, 6), "quantiles": dict(zip(map(str, QUANTILES), quantiles))}
