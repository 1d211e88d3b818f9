"""Op speed: the backends of one op against each other, against the bytes they have to move, and against bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from ...mixers.limits import Bytes, Count, Size
from ...mixers.ops.dispatch import Op
from ...models import ModelConfig, parse_layout
from ..doing import Progress
from ..precision import Precision, resolve
from .bars import FEWEST_LENGTHS, Bar, ratios
from .base import part_of
from .contest import Contender, Contest, peaks_in_turn, row, time_in_turn
from .meter import keep_freed_memory, quartiles
from .op_work import FwpkmWork

Mode = Literal["forward", "train", "decode"]
WORKS = {"fwpkm": FwpkmWork}  # another op needs a class with the methods of this one
_COPY = "copy"
_MEASURED_BY = {
    "overhead": "overhead",
    "attention": "mixer_speed",
    "library": "library_overhead",
    "decoder": "decode_speed",
}


class OpSpeed(Contest):
    """Seconds and bytes of an op on random tokens, its backends in turn, in one process; one case for all sizes.

    op: which; its sizes are those that the layout gives the mixer of this name. modes: `forward`, `train` (forward and
    backward), `decode` (one token at a time after a context, over `decode_chunks` chunks with their rewrites).
    lengths: tokens, in mode decode of the context. batch: sequences at once. backends: each is compared with those
    after it. rounds: of each; slow_rounds: of the backends in `slow`, which do without a warm-up.
    memory: `fresh`, as a process has it: large tensors are new pages from the operating system, whose time counts;
    `kept`: what is freed stays with the process, so that only the op is timed (see `keep_freed_memory`).
    copy_bytes: size of the copy that tells the memory's bandwidth. bars: what ratios are held to.
    """

    measure: Literal["op_speed"] = "op_speed"
    op: Literal["fwpkm"] = "fwpkm"
    modes: tuple[Mode, ...] = Field(default=("forward", "train"), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(4096,), min_length=1)
    batch: Size = 1
    backends: tuple[str, ...] = Field(default=("compact",), min_length=1)
    rounds: Count = Field(default=7, ge=3)
    slow: tuple[str, ...] = ("reference",)
    slow_rounds: Count = 3
    decode_chunks: Count = 1
    memory: Literal["fresh", "kept"] = "kept"
    copy_bytes: Bytes = Field(default=2**28, ge=2**10)
    precision: Precision = "auto"
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        known = WORKS[self.op].op.backends
        for backend in self.backends:
            if backend not in known:
                raise ValueError(f"{self.op} has no backend {backend!r}; it has {', '.join(known)}")
        for values, name in ((self.backends, "backends"), (self.modes, "modes"), (self.lengths, "lengths")):
            if len(set(values)) < len(values):
                raise ValueError(f"the {name} must differ, got {list(values)}")
        for bar in self.bars:
            self._check_bar(bar)
        return self

    def _check_bar(self, bar: Bar) -> None:
        """Raise `ValueError` if no ratio of this measure would be held to the bar."""
        if bar.kind in _MEASURED_BY:
            measure = _MEASURED_BY[bar.kind]
            raise ValueError(f"a bar of kind {bar.kind!r} belongs to the measure {measure}")
        if bar.mode not in self.modes:
            raise ValueError(f"a bar is about mode {bar.mode!r}, which is not in modes {list(self.modes)}")
        compared = bar.kind in ("faster", "smaller")
        places = [self.backends.index(b) if b in self.backends else -1 for b in (bar.backend, bar.over) if b]
        if len(places) != 1 + compared or places[0] < 0 or (compared and not places[0] < places[1]):
            needed = "a backend and, in over, one that follows it" if compared else "a backend, and nothing in over,"
            raise ValueError(f"a bar of kind {bar.kind!r} needs {needed} of {list(self.backends)}")
        fewest = FEWEST_LENGTHS.get(bar.kind, 1)
        if len(self.lengths) < fewest:
            raise ValueError(f"a bar of kind {bar.kind!r} needs at least {fewest} lengths, got {list(self.lengths)}")
        if bar.kind in ("linear", "fit") and bar.mode == "decode":
            raise ValueError(f"a bar of kind {bar.kind!r} is about the bytes of a whole call, not of decoding")

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows`, `ratios` (see `ratios`), `copy_bandwidth` and `table_bytes`.

        A row is one backend in one mode at one length: `median`, `q1`, `q3` of seconds (of a call, in mode decode of
        a token), `rounds`, `samples`, `first_call_seconds`, `ran` (op -> backends), `units` (tokens that the seconds
        are of), `batch`, `peak_bytes` (allocated above what was there before the call: table and tokens; in mode
        decode, over all decoded tokens) and `method`, `floor_bytes` (that have to be moved, see `counted_bytes` of the
        op's work) and `floor_seconds` (at the bandwidth of a copy in this run). copy_bandwidth: bytes read and written
        a second; `median`, `q1`, `q3`.
        Raises `ValueError` if the layout has no such mixer, or a backend cannot run on `device`.
        """
        _check_backends(WORKS[self.op].op, self.backends, device)
        cases: list[tuple[str, int]] = [(mode, tokens) for mode in self.modes for tokens in self.lengths]
        options = mixer_options_of(config, self.op)
        progress(0.0, "random tokens")
        if self.memory == "kept":
            keep_freed_memory(device)
        work = self._work(options, config.d_model, seed, device)
        contenders = [self._contender(work, *case, backend) for case in cases for backend in self.backends]
        copy = _copying(self.copy_bytes, device)
        timings = time_in_turn(
            [*contenders, copy],
            device,
            rounds=self.rounds,
            slow_rounds=self.slow_rounds,
            progress=part_of(progress, 0.0, 0.7),
        )
        bandwidth = quartiles([2 * self.copy_bytes / seconds for seconds in timings[-1].samples])
        peaks = peaks_in_turn(contenders, device, part_of(progress, 0.7, 0.95))
        progress(0.95, "counting bytes")
        counted = work.counted_bytes(self.backends[0], cases, self.decode_chunks * work.chunk_size)
        floors = dict(zip(cases, counted))
        rows = []
        for contender, own, peak in zip(contenders, timings, peaks):
            floor = floors[contender.mode, contender.tokens]
            units = self.batch * (1 if contender.mode == "decode" else contender.tokens)
            rows.append(
                {
                    **row(contender, own, batch=self.batch, units=units, **peak),
                    "floor_bytes": floor,
                    "floor_seconds": floor / bandwidth["median"],
                }
            )
        return {
            "rows": rows,
            "ratios": ratios(rows, self.bars),
            "copy_bandwidth": bandwidth,
            "table_bytes": work.table_bytes,
        }

    def _work(self, options: dict[str, Any], d_model: int, seed: int, device: torch.device) -> FwpkmWork:
        return WORKS[self.op](
            options,
            d_model=d_model,
            batch=self.batch,
            length=max(self.lengths),
            decode_chunks=self.decode_chunks if "decode" in self.modes else 0,
            seed=seed,
            device=device,
            dtype=getattr(torch, resolve(self.precision, device)),
        )

    def _contender(self, work: FwpkmWork, mode: str, tokens: int, backend: str) -> Contender:
        slow = backend in self.slow
        if mode == "forward":
            return Contender(backend, mode, tokens, lambda _: work.forward(backend, tokens), slow=slow)
        if mode == "train":
            return Contender(backend, mode, tokens, lambda _: work.train(backend, tokens), slow=slow)
        count = self.decode_chunks * work.chunk_size
        contexts: list[Any] = []

        def prepare() -> Any:
            # The first token is not timed: continuing a state a second time may copy a buffer, decoding on never does.
            if not contexts:
                contexts.append(work.context(backend, tokens))
            return work.decode(backend, contexts[0], 1)[1]

        return Contender(
            backend, mode, tokens, lambda state: work.decode(backend, state, count), prepare, units=count, slow=slow
        )


def mixer_options_of(config: ModelConfig, name: str) -> dict[str, Any]:
    """The options of the first mixer `name` in the layout. Raises `ValueError` if there is none."""
    layout = parse_layout(config.layout)
    mixers = [part.mixer for part in layout.pattern] + [part.mixer for part in layout.insertions]
    for mixer in mixers:
        if mixer.name == name:
            return {**config.mixer_defaults.get(name, {}), **mixer.options}
    raise ValueError(f"the layout {config.layout!r} has no {name}; op speed takes the sizes of the op from there")


def _check_backends(op: Op, backends: tuple[str, ...], device: torch.device) -> None:
    for backend in backends:
        reason = op.backends[backend].why_not(device)
        if reason is not None:
            usable = ", ".join(op.available(device))
            raise ValueError(f"backend {backend!r} of {op.name} cannot run: {reason}; here run {usable}")


def _copying(size: int, device: torch.device) -> Contender:
    """Copying `size` bytes from one tensor to another."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Contender(_COPY, _COPY, 0, lambda _: target.copy_(source))
