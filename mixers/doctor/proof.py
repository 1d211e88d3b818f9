"""Whether a backend computes what it should: against float64 on the CPU, forward and backward, whole and in pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.dispatch import CannotRunError, Op
from ..ops.problems import Inputs, Problem
from ..ops.verdicts import Error
from .cases import CPU, TOKENS, Case, cast, dtype_of, key_of, problem_of

# What passes: a floor for the dtype, or some times the error of the portable code where that is more, up to a ceiling.
# A sum rounded to bfloat16 once is off by 1.6e-3 (float16: 2e-4) in the 2-norm; kernels round their parts as well.
# In TF32 float32 would be off by some 2e-4 or more: a kernel that takes TF32 unasked is wrong in float32.
FLOORS = {"float32": 2e-5, "bfloat16": 5e-3, "float16": 2e-3}
CEILINGS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
TIMES_PORTABLE = 3.0
BACKWARD_FLOOR = 2.0  # gradients go through the rounded parts twice
_SEED = 20

Results = dict[str, Tensor]


class Sizes(NamedTuple):
    """Of the inputs that are compared. cuts: where a sequence is continued; lengths: of the documents, one for each
    row."""

    tokens: int
    cuts: tuple[int, ...]
    lengths: tuple[int, ...]


FULL = Sizes(TOKENS, (67, 68), (200, 131))
# Triton's interpreter takes some ten thousand times as long.
INTERPRETED = Sizes(50, (33, 34), (50, 21))


class Trial:
    """A problem with inputs in one dtype, and what is right for them."""

    def __init__(self, problem: Problem, dtype: torch.dtype, sizes: Sizes) -> None:
        self.problem, self.dtype, self.sizes = problem, dtype, sizes
        generator = torch.Generator().manual_seed(_SEED)
        batch = len(sizes.lengths)
        self.inputs = self._rounded(problem.inputs(batch, sizes.tokens, generator))
        filling = self._rounded(problem.inputs(batch, sizes.tokens, generator))
        self.valid = torch.arange(sizes.tokens) < torch.tensor(sizes.lengths)[:, None]
        moving = {n: t for n, t in self.inputs.items() if n not in problem.fixed}
        self.padded = self.inputs | {n: _where(self.valid, t, filling[n]) for n, t in moving.items()}

    def forward(self, backend: str, device: torch.device, dtype: torch.dtype) -> Results:
        """The outputs of the whole, of pieces that continue each other, and of rows filled up behind their ends."""
        x = self._cast(self.inputs, device, dtype)
        with torch.no_grad():
            found = {"forward": self.problem.run(x, None, backend)[0]}
            if self.problem.carries_state:
                found["state"] = self._in_pieces(x, backend)
            documents = self.problem.run(self._cast(self.padded, device, dtype), None, backend)[0]
        found["documents"] = _where(self.valid.to(device), documents, torch.zeros_like(documents))
        return {name: _back(t) for name, t in found.items()}

    def backward(self, backend: str, device: torch.device, dtype: torch.dtype) -> Results:
        """The gradients of the whole and of the valid parts of padded rows, by input; and the output again, since a
        kernel that keeps things for its gradients is another kernel."""
        found: Results = {}
        for name, inputs in (("", self.inputs), ("documents ", self.padded)):
            x = self._cast(inputs, device, dtype)
            x = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in x.items()}
            output, _ = self.problem.run(x, None, backend)
            cotangent = self._cotangent(output)
            if name:
                cotangent = _where(self.valid.to(device), cotangent, torch.zeros_like(cotangent))
            wanted = {n: t for n, t in x.items() if t.requires_grad}
            gradients = torch.autograd.grad(output, list(wanted.values()), cotangent, materialize_grads=True)
            found |= {f"{name}{n}": _back(g) for n, g in zip(wanted, gradients)}
            if not name:
                found["output"] = _back(output)
        return found

    def _in_pieces(self, x: Inputs, backend: str) -> Tensor:
        outputs, state = [], None
        edges = (0, *self.sizes.cuts, self.sizes.tokens)
        for start, end in itertools.pairwise(edges):
            piece = {n: t if n in self.problem.fixed else t[:, start:end] for n, t in x.items()}
            output, state = self.problem.run(piece, state, backend)
            outputs.append(output)
        return torch.cat(outputs, dim=1)

    def _cotangent(self, output: Tensor) -> Tensor:
        """The same one for every backend."""
        generator = torch.Generator().manual_seed(_SEED + 1)
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return drawn.to(self.dtype).to(output)

    def _rounded(self, inputs: Inputs) -> Inputs:
        """In float64, but with the values that the dtype can hold."""
        rounded = cast(self.problem, inputs, self.dtype, CPU)
        return {n: t.to(inputs[n].dtype) for n, t in rounded.items()}

    def _cast(self, inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
        return cast(self.problem, inputs, dtype, device)


class Proof:
    """One case: the largest head size of the class, and an odd one inside it."""

    def __init__(self, op: Op, case: Case, device: torch.device, sizes: Sizes) -> None:
        self.op, self.case, self.device = op, case, device
        self.dtype = dtype_of(case.dtype)
        self.trials = [Trial(problem, self.dtype, sizes) for problem in self._problems()]
        always = [b for b in op.backends.values() if b.trust == "always"]
        # Not the reference: it goes token by token, and keeps gigabytes for its gradients. The tests hold the portable
        # code to it in float64.
        self.oracle = next(b.name for b in always if b.why_not(CPU) is None)
        self.portable = [b.name for b in always if b.why_not(device) is None]

    def _problems(self) -> Iterator[Problem]:
        for size in (self.case.size, 3 * self.case.size // 4):
            problem = problem_of(self.op, self.case.variant, size)
            if problem is not None and key_of(self.op, problem, self.case.dtype) == self.case.key:
                yield problem

    def forward(self) -> dict[str, Error]:
        """By what was compared: `forward`, `state`, `documents`. Raises what the backend raises; `CannotRunError` where
        it takes none of the head sizes."""
        return self._compare(lambda trial: trial.forward, FLOORS[self.case.dtype], lambda name: name)

    def backward(self) -> dict[str, Error]:
        """`backward`: the worst of all gradients."""
        floor = BACKWARD_FLOOR * FLOORS[self.case.dtype]
        return self._compare(lambda trial: trial.backward, floor, lambda name: "backward")

    def _compare(
        self, way: Callable[[Trial], Callable[..., Results]], floor: float, title: Callable[[str], str]
    ) -> dict[str, Error]:
        worst: dict[str, Error] = {}
        refused: CannotRunError | None = None
        for trial in self.trials:
            run = way(trial)
            try:
                found = run(self.case.backend, self.device, self.dtype)
            except CannotRunError as error:
                refused = error
                continue
            right = run(self.oracle, CPU, torch.float64)
            portable = self._portable(run, right)
            for name, true in right.items():
                limit = min(CEILINGS[self.case.dtype], max(floor, TIMES_PORTABLE * portable.get(name, 0.0)))
                error_here = Error(error=relative_error(found[name], true), limit=limit)
                key = title(name)
                worst[key] = max(worst.get(key, error_here), error_here, key=lambda e: e.error / e.limit)
        if not worst and refused is not None:
            raise refused
        return worst

    def _portable(self, run: Callable[..., Results], right: Results) -> Mapping[str, float]:
        """The errors of the portable code in the same dtype on the same device; empty where none runs."""
        for name in self.portable:
            try:
                found = run(name, self.device, self.dtype)
            except (RuntimeError, ValueError, NotImplementedError):  # it may lack the dtype
                continue
            errors = {n: relative_error(found[n], true) for n, true in right.items()}
            return {n: e for n, e in errors.items() if math.isfinite(e)}
        return {}


def relative_error(found: Tensor, true: Tensor) -> float:
    """In the 2-norm, of a whole tensor; infinite for another shape, or where anything is not finite."""
    if found.shape != true.shape:
        return math.inf
    difference, size = (float(torch.linalg.vector_norm(t)) for t in (found - true, true))
    error = difference / size if size > 0 else difference
    return error if math.isfinite(error) else math.inf


def _where(rows: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """`this` at the tokens `[batch, time]` that are valid, `other` behind them."""
    return torch.where(rows.view(*rows.shape, *(1,) * (this.ndim - 2)), this, other)


def _back(t: Tensor) -> Tensor:
    return t.detach().to(CPU, torch.float64)
