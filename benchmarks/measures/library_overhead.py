"""Library overhead: an op that calls a library's kernel, against the same call made directly, in turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from ...mixers import mixer_card
from ...mixers.limits import Count, Real, Size, Width
from ...mixers.ops.dispatch import Backend, CannotRunError, Op
from ...mixers.ops.libraries import LibraryCall, library_calls
from ...mixers.ops.problems import Inputs, Problem
from ...models import ModelConfig, parse_layout
from ..doing import Progress
from ..precision import Precision, resolve
from .bars import Bar, library_ratios
from .base import part_of
from .contest import Contender, Contest, peaks_in_turn, row, time_in_turn

Mode = Literal["forward", "train"]
DIRECT = "called directly"


class LibraryOverhead(Contest):
    """What the ops of the layout's first mixer cost above the library's kernel that they call.

    For every problem that an op's backends are proven on, and every backend that can take it here and calls a library:
    the op, and the library's function on the very tensors that it got from the op.
    modes: `forward` without gradients, `train` (forward and backward). lengths: tokens. d_head: size of a head.
    batch: sequences at once. rounds: of each. most: the bar, that the ratio of seconds may not exceed.
    """

    measure: Literal["library_overhead"] = "library_overhead"
    modes: tuple[Mode, ...] = Field(default=("forward", "train"), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(4096,), min_length=1)
    d_head: Width = 64
    batch: Size = 1
    rounds: Count = Field(default=15, ge=3)
    most: Real | None = Field(default=None, gt=0)
    precision: Precision = "auto"

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics are `rows` and `ratios`, see `library_ratios`.

        A row is the op with a backend and a variant of its problem, or the direct call, in one mode at one length.
        Raises `ValueError` if no backend that can run here calls a library.
        """
        ops = mixer_card(parse_layout(config.layout).pattern[0].mixer.name).ops
        pairs: list[tuple[Contender, Contender]] = []
        for op, mode, length in itertools.product(ops, self.modes, self.lengths):
            for problem, backend in _cases(op, self.d_head, device):
                generator = torch.Generator().manual_seed(seed)
                drawn = problem.inputs(self.batch, length, generator)
                pair = _pair(_Work(problem, backend, mode, self._placed(problem, drawn, device)), length)
                pairs += [pair] if pair else []
        if not pairs:
            names = ", ".join(op.name for op in ops)
            raise ValueError(f"no backend of {names} that can run on {device} calls a library's kernel")
        contenders = [contender for pair in pairs for contender in pair]
        timings = time_in_turn(
            contenders, device, rounds=self.rounds, slow_rounds=self.rounds, progress=part_of(progress, 0.0, 0.9)
        )
        peaks = peaks_in_turn(contenders, device, part_of(progress, 0.9, 1.0))
        rows = [
            row(c, own, batch=self.batch, units=self.batch * c.tokens, **peak)
            for c, own, peak in zip(contenders, timings, peaks)
        ]
        return {"rows": rows, "ratios": [r for i in range(0, len(rows), 2) for r in self._ratios(rows[i : i + 2])]}

    def _placed(self, problem: Problem, inputs: Inputs, device: torch.device) -> Inputs:
        low = getattr(torch, resolve(self.precision, device))
        return {name: t.to(device, torch.float32 if name in problem.exact else low) for name, t in inputs.items()}

    def _ratios(self, pair: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ours, direct = pair
        named = {"mode": ours["mode"], "backend": ours["backend"], "over": direct["backend"]}
        bars = [] if self.most is None else [Bar(kind="library", value=self.most, **named)]
        return library_ratios(pair, bars)


def _cases(op: Op, d_head: int, device: torch.device) -> Iterator[tuple[Problem, Backend]]:
    """Every problem with every backend that may be picked and runs on the device."""
    if op.problems is None:
        return
    for problem in op.load_problems()(d_head):
        for backend in op.backends.values():
            if backend.trust != "never" and backend.why_not(device) is None:
                yield problem, backend


@dataclass(frozen=True)
class _Work:
    """One problem on one backend, forward or with its gradients."""

    problem: Problem
    backend: Backend
    mode: Mode
    inputs: Inputs

    def op(self) -> object:
        """The op itself."""
        if self.mode == "forward":
            with torch.no_grad():
                return self.problem.run(self.inputs, None, self.backend.name)[0]
        leaves = {name: t.detach().requires_grad_() for name, t in self.inputs.items()}
        return _gradients(self.problem.run(leaves, None, self.backend.name)[0], list(leaves.values()))

    def direct(self, calls: list[LibraryCall]) -> object:
        """What the op called, on tensors of its own."""
        return [self._repeat(call) for call in calls]

    def _repeat(self, call: LibraryCall) -> object:
        if self.mode == "forward":
            with torch.no_grad():
                return call.function(*call.args, **call.kwargs)
        leaves: list[Tensor] = []

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]

        args, kwargs = pytree.tree_map(leaf, (call.args, call.kwargs))
        return _gradients(pytree.tree_leaves(call.function(*args, **kwargs))[0], leaves)


def _gradients(output: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)


def _pair(work: _Work, length: int) -> tuple[Contender, Contender] | None:
    """The op and the call that it made; None where it called no library, or refused."""
    try:
        with library_calls() as calls:
            work.op()
    except CannotRunError:
        return None
    if not calls:
        return None
    name = f"{work.backend.name} {work.problem.variant}".strip()
    return (
        Contender(name, work.mode, length, lambda _: work.op()),
        Contender(f"{name}, {DIRECT}", work.mode, length, lambda _: work.direct(calls), opaque=True),
    )
