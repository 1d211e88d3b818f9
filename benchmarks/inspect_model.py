"""What the sparse memories of a saved model do with a file: everything that `mixerzoo inspect` shows, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..mixers.memory.fwpkm_inspection import LayerTrace, memory_trace, record_fwpkm, slot_usage
from ..models import LanguageModel

N_BYTES = 256
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PIECE = 4096  # tokens read at once, so that a long file does not need the memory of its length


def load_model(checkpoint: Path, device: torch.device) -> LanguageModel:
    """The model in the folder `checkpoint`.

    Raises `ValueError` if there is nothing to look into, or it cannot read bytes; otherwise as `LanguageModel.load`.
    """
    model = LanguageModel.load(checkpoint, device).eval()
    if all(mixer.card.name != "fwpkm" for mixer in model.mixers()):
        raise ValueError(f"the model in {checkpoint} has no fwpkm layer to look into: it is {model.config.layout!r}")
    if model.config.vocab_size < N_BYTES:
        raise ValueError(
            f"a file is read byte by byte, as token ids 0..{N_BYTES - 1}, but the model in {checkpoint} has "
            f"vocab_size={model.config.vocab_size}"
        )
    return model


def read_text(path: Path) -> bytes:
    """The bytes of a file. Raises `ValueError` if there are none."""
    text = path.read_bytes()
    if not text:
        raise ValueError(f"{path} is empty: there is nothing to read")
    return text


def resolve_token(token: int, count: int) -> int:
    """The position that `token` means among `count`, counted from the end if negative."""
    if not -count <= token < count:
        raise ValueError(f"--token must be in {-count}..{count - 1}, the file having {count} tokens, got {token}")
    return token % count


def inspect(model: LanguageModel, text: bytes, token: int, device: torch.device, writers: int = 3) -> dict[str, Any]:
    """What each FwPKM layer does while the model reads `text`, fit for JSON.

    `layers`: for each its `name`, `n_slots`, `gate` (mean, quantiles; None without one), `usage` (see `SlotUsage`),
    `slots_by_accesses` (pairs: accesses, how many slots have so many), `updates` (start and end of what was written,
    2-norm of the rows' change) and `gates`, token by token. `token`: for the token at that position, layer by layer,
    the slots it read, each with the latest `writers` tokens that wrote it.
    """
    traces = _read(model, torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None].to(device))
    return {
        "tokens": len(text),
        "layers": [_describe(trace) for trace in traces.values()],
        "token": {
            "position": token,
            "layers": [
                {"name": name, "lookahead": trace.lookahead, "reads": _reads(trace, token, writers)}
                for name, trace in traces.items()
            ],
        },
    }


@torch.no_grad()
def _read(model: LanguageModel, tokens: Tensor) -> dict[str, LayerTrace]:
    state = None
    with record_fwpkm(model) as traces:
        for piece in tokens.split(PIECE, dim=1):
            _, state = model.features(piece, state, return_state=True)
    return traces


def _describe(trace: LayerTrace) -> dict[str, Any]:
    counts = torch.bincount(trace.slots.flatten(), minlength=trace.n_slots)
    return {
        "name": trace.name,
        "n_slots": trace.n_slots,
        "gate": None if trace.gates is None else _gate(trace.gates[0]),
        "usage": asdict(slot_usage(trace.slots, trace.n_slots)),
        "slots_by_accesses": [list(pair) for pair in sorted(Counter(counts.tolist()).items())],
        "updates": [{"start": u.start, "end": u.end, "change": float(u.change[0])} for u in trace.updates],
        "gates": None if trace.gates is None else [round(gate, 4) for gate in trace.gates[0].tolist()],
    }


def _gate(gates: Tensor) -> dict[str, Any]:
    gates = gates.double()
    points = torch.quantile(gates, torch.tensor(QUANTILES, dtype=gates.dtype, device=gates.device))
    return {"mean": float(gates.mean()), "quantiles": dict(zip(map(str, QUANTILES), points.tolist(), strict=True))}


def _reads(trace: LayerTrace, token: int, writers: int) -> list[dict[str, Any]]:
    return [asdict(read) for read in memory_trace(trace, token, latest=writers)]
