"""Looking inside a sparse memory: its gates, the slots it uses, how much it rewrites, and who wrote what a token reads.

`record_fwpkm(model)` collects while it is on, `watch_fwpkm(look)` only shows. While neither is on, a layer asks once a
call whether anybody looks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..ops.fwpkm import FwpkmOutput, FwpkmState
    from .fwpkm import FwPKM, FwPKMState

    Recorder = Callable[[FwPKM, Tensor, FwPKMState | None, Tensor | None, FwpkmOutput], None]

_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@dataclass(frozen=True)
class Update:
    """One rewrite of the memory, made after the token at position `end - 1`.

    slots, weights `[batch, written, heads, top_k]`: where the tokens from position `start` on were written.
    change `[memories]`: the 2-norm of what the rewrite added to the rows, all of them together.
    """

    start: int
    end: int
    slots: Tensor
    weights: Tensor
    change: Tensor


@dataclass(frozen=True)
class LayerTrace:
    """What a layer did with the tokens of one text from position `start` on.

    name: the layer's in the model. n_slots: of its memory. lookahead: what a token is written with is the target of
    the token so many places later. shared: one memory for all rows of the batch.
    gates `[batch, time]`, None for a layer without; slots, weights `[batch, time, heads, top_k]`: what tokens read.
    """

    name: str
    n_slots: int
    lookahead: int
    shared: bool
    start: int
    gates: Tensor | None
    slots: Tensor
    weights: Tensor
    updates: tuple[Update, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.slots.shape[1]


@contextlib.contextmanager
def record_fwpkm(model: nn.Module) -> Iterator[dict[str, LayerTrace]]:
    """Within this context, collect what the FwPKM layers of `model` do, by their names in it; `""` for a layer itself.

    A call with a state that continues the text is added to the trace; one that starts another text replaces it. Tokens
    read before the context began are not known. To see what is written, each call is read once more, chunk by chunk.
    Layers that `torch.compile` has compiled are not seen, see `recorder`.
    """
    recording = _Recording({module: name for name, module in model.named_modules()})
    with watch_fwpkm(recording):
        yield recording.traces


@contextlib.contextmanager
def watch_fwpkm(look: Recorder) -> Iterator[None]:
    """Within this context, every call of an FwPKM layer is shown to `look(layer, x, state, gates, output)`.

    x `[batch, time, d_model]`; state: the one that the call was given; gates `[batch, time]` or None. Nothing is kept
    or read again, so that watching costs what `look` does.
    """
    token = _recorder.set(look)
    try:
        yield
    finally:
        _recorder.reset(token)


def recorder() -> Recorder | None:
    """Who looks on; None, as nearly always, if nobody does. Compiled code is not looked into: it would fall apart."""
    return None if torch.compiler.is_compiling() else _recorder.get()


# ---------------------------------------------------------------------------------------------------------------------
# What the traces say


@dataclass(frozen=True)
class SlotUsage:
    """How accesses spread over slots.

    accesses: number of them. used: distinct slots. coverage: share of all slots that are used. collisions: accesses
    to a used slot, on average. divergence: KL of the use from the uniform, in nats: 0 if all are used alike.
    """

    accesses: int
    used: int
    coverage: float
    collisions: float
    divergence: float


def slot_usage(slots: Tensor, n_slots: int) -> SlotUsage:
    """The usage of a memory of `n_slots` by the accesses `slots`, of any shape with at least one entry."""
    counts = torch.bincount(slots.flatten(), minlength=n_slots)
    counts = counts[counts > 0].double()
    accesses, used = int(counts.sum()), len(counts)
    share = counts / accesses
    divergence = float((share * (share * n_slots).log()).sum())
    return SlotUsage(accesses, used, used / n_slots, accesses / used, max(0.0, divergence))


@dataclass(frozen=True)
class Writer:
    """A token that wrote a slot: its row of the batch, its position, and its weight on the slot (over all heads)."""

    row: int
    position: int
    weight: float


@dataclass(frozen=True)
class SlotRead:
    """A slot that a token read: by which head, with what weight, how many tokens had written it, and the latest."""

    slot: int
    head: int
    weight: float
    writes: int
    writers: tuple[Writer, ...]


def memory_trace(trace: LayerTrace, position: int, row: int = 0, latest: int = 3) -> list[SlotRead]:
    """The slots that the token at `position` of `row` read, heaviest first, each with the `latest` tokens (latest
    first) that wrote it before the token's chunk.

    A slot without writers holds what the memory held before the trace. Raises `ValueError` for a token not in it.
    """
    if not trace.start <= position < trace.end:
        raise ValueError(f"position must be in {trace.start}..{trace.end - 1}, got {position}")
    if not 0 <= row < len(trace.slots):
        raise ValueError(f"row must be in 0..{len(trace.slots) - 1}, got {row}")
    slots, weights = (t[row, position - trace.start] for t in (trace.slots, trace.weights))
    past = [update for update in trace.updates if update.end <= position]
    reads = []
    for head, (head_slots, head_weights) in enumerate(zip(slots.tolist(), weights.tolist(), strict=True)):
        for slot, weight in zip(head_slots, head_weights, strict=True):
            found = [w for update in past for w in _writers(update, slot, None if trace.shared else row)]
            found.sort(key=lambda writer: (-writer.position, writer.row))
            reads.append(SlotRead(slot, head, weight, len(found), tuple(found[:latest])))
    return sorted(reads, key=lambda read: -read.weight)


def _writers(update: Update, slot: int, row: int | None) -> list[Writer]:
    """The tokens of `row` (None: of all rows) that the update wrote to `slot`."""
    hit = update.slots == slot
    weight = (update.weights * hit).sum((-1, -2))
    return [
        Writer(r, update.start + t, float(weight[r, t]))
        for r, t in hit.flatten(2).any(-1).nonzero().tolist()
        if row in (None, r)
    ]


def row_change(before: FwpkmState | None, after: FwpkmState, initial: Tensor) -> Tensor:
    """How far the rows of each memory moved from `before` (None: `initial [n_slots, d_v]`) to `after`: the 2-norm of
    the change, over all rows, `[memories]`."""
    slots, rows, n_slots = after.slots, after.rows, after.n_slots
    old = initial.index_select(0, slots % n_slots).to(rows.dtype)
    if before is not None:  # what was written once stays listed
        old = old.index_copy(0, torch.searchsorted(slots, before.slots), before.rows)
    squares = (rows - old).square().sum(-1)
    total = squares.new_zeros(1 if after.shared_memory else after.batch)
    return total.index_add(0, slots // n_slots, squares).sqrt()


# ---------------------------------------------------------------------------------------------------------------------
# Recording


@dataclass
class _Edge:
    """What the next rewrite of a layer needs of earlier calls: the inputs `[batch, n, d_model]` of the last `lookahead`
    tokens, and what those carried over the last edge address in the memory of this chunk, `[batch, n, heads, top_k]`.
    """

    inputs: Tensor
    slots: Tensor
    weights: Tensor


class _Recording:
    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.traces: dict[str, LayerTrace] = {}
        self._edges: dict[str, _Edge] = {}

    @torch.no_grad()
    def __call__(
        self, layer: FwPKM, x: Tensor, state: FwPKMState | None, gates: Tensor | None, output: FwpkmOutput
    ) -> None:
        name = self.names.get(layer)
        if name is None:  # a layer of another model
            return
        start = 0 if state is None else state.position
        gates = None if gates is None else gates.detach()
        slots, weights = output.slots, output.weights.detach()
        trace = self.traces.get(name)
        if trace is not None and trace.end == start and len(trace.slots) == len(x):
            if trace.gates is not None and gates is not None:
                gates = torch.cat([trace.gates, gates], 1)
            slots, weights = torch.cat([trace.slots, slots], 1), torch.cat([trace.weights, weights], 1)
            trace = replace(trace, gates=gates, slots=slots, weights=weights)
        else:
            n_slots, shared = len(layer.values), layer.scope != "sequence"
            trace = LayerTrace(name, n_slots, layer.lookahead, shared, start, gates, slots, weights)
            self._edges[name] = _Edge(x[:, :0].detach(), slots[:, :0], weights[:, :0])
        updates = list(_replay(layer, x.detach(), state, trace, self._edges[name]))
        self.traces[name] = replace(trace, updates=(*trace.updates, *updates))


def _replay(layer: FwPKM, x: Tensor, state: FwPKMState | None, trace: LayerTrace, edge: _Edge) -> Iterator[Update]:
    """Read `x`, the last tokens of the trace, again from `state`, up to each rewrite; keeps `edge` up to date."""
    size, lookahead, carry = layer.chunk_size, trace.lookahead, layer.boundary == "carry"
    place = trace.end - x.shape[1]
    while (end := (place // size + 1) * size) <= trace.end:
        piece, x = x[:, : end - place], x[:, end - place :]
        after, _ = _read(layer, piece, state)
        first = max(end - size, trace.start)
        own = slice(first - trace.start, max(first, end - lookahead) - trace.start)
        yield Update(
            start=first - edge.slots.shape[1],
            end=end,
            slots=torch.cat([edge.slots, trace.slots[:, own]], 1),
            weights=torch.cat([edge.weights, trace.weights[:, own]], 1),
            change=row_change(None if state is None else state.fast, after.fast, layer.values),
        )
        edge.inputs = _last(torch.cat([edge.inputs, piece], 1), lookahead)
        edge.slots, edge.weights = trace.slots[:, :0], trace.weights[:, :0]
        if carry and edge.inputs.shape[1]:  # written by the next rewrite, where the memory of that chunk finds them
            _, found = _read(layer, edge.inputs, after)
            edge.slots, edge.weights = found.slots, found.weights
        place, state = end, after
    edge.inputs = _last(torch.cat([edge.inputs, x], 1), lookahead)


def _read(layer: FwPKM, x: Tensor, state: FwPKMState | None) -> tuple[FwPKMState, FwpkmOutput]:
    """The state after `x`, and what the op returned."""
    outputs: list[FwpkmOutput] = []

    def keep(*arguments: Any) -> None:
        outputs.append(arguments[-1])

    with watch_fwpkm(keep):
        _, after = layer.mix(x, state, True)
    assert after is not None
    return after, outputs[0]


def _last(x: Tensor, count: int) -> Tensor:
    return x[:, max(0, x.shape[1] - count) :]
