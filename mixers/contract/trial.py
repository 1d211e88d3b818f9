"""What a check of the contract works with: a mixer to build, where it runs, and what was measured of it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..interface import Mixer, own_options
from ..state import MixerState
from ..tf32 import tf32

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


class SkipCheck(Exception):
    """A check does not apply; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """One number of a check, and the largest value that passes."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # False for nan

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.3g} (limit {self.limit:.3g})"


@dataclass
class Trial:
    """One check of one mixer on one device in one dtype; the check records what it measures and what is wrong.

    factory: `factory(d_model, **options) -> Mixer`. dtype: float64 where exactness is asked, on the CPU; float32 and
    bfloat16 on accelerators. repeated: whether there is an accelerator as well.
    """

    factory: Callable[..., Mixer]
    d_model: int
    options: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    compile_backend: str = "inductor"
    repeated: bool = False
    measurements: list[Measurement] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        probe = self.build(nudged=False)
        self.card = probe.card
        self.generator = torch.Generator().manual_seed(self.seed)
        # The longest piece in which the mixer works; sequences are long enough to cross its edges twice.
        pieces = [probe.options[name] for name, option in own_options(type(probe)).items() if option.piece]
        self.edge = max([p for p in pieces if p is not None and p > 1], default=16)
        self.time = max(75, 2 * self.edge + 11)

    @property
    def exact(self) -> bool:
        """Whether this is the definition: float64 on the CPU, which what an accelerator gives is held to."""
        return self.dtype == torch.float64

    def tolerance(self, dtype: torch.dtype | None = None) -> float:
        """Largest relative error between two ways to compute the same thing in `dtype`."""
        return _TOLERANCES.get(dtype or self.dtype, self.card.low_precision_tolerance)

    def build(
        self, dtype: torch.dtype | None = None, *, nudged: bool = True, seed: int | None = None, **options: Any
    ) -> Mixer:
        """A new mixer. `nudged` moves every parameter a little: no zero at initialisation shall hide a fault."""
        seed = self.seed if seed is None else seed
        torch.manual_seed(seed)
        mixer = self.factory(self.d_model, **{**self.options, **options}).to(self.device, dtype or self.dtype)
        if nudged:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in mixer.parameters():
                    p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
        return mixer

    def input(self, batch: int, time: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed `x [batch, time, d_model]`, another one at each call."""
        x = torch.randn(batch, time, self.d_model, generator=self.generator, dtype=torch.float64)
        return x.to(self.device, dtype or self.dtype)

    def same(self, what: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
        """Record the relative error, in the 2-norm, of `actual`."""
        limit = self.tolerance() if tolerance is None else tolerance
        self.measurements.append(Measurement(what, relative_error(actual, expected), limit))

    def same_gradients(
        self, what: str, actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float | None = None
    ) -> None:
        """Record one relative error over all gradients: that of one alone may be near zero and mostly rounding."""
        a, b = (torch.cat([g.flatten().double() for g in gs.values()]) for gs in (actual, expected))
        self.same(what, a, b, tolerance)

    def at_most(self, what: str, value: float, limit: float) -> None:
        self.measurements.append(Measurement(what, value, limit))

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    def failures(self) -> list[str]:
        """What is wrong, each thing once; of many numbers over their limits the first three."""
        over = [str(m) for m in self.measurements if not m.passed]
        more = [f"and {len(over) - 3} more over their limits"] * (len(over) > 3)
        return [*dict.fromkeys(self.problems), *over[:3], *more]

    def cuts(self) -> dict[str, list[int]]:
        """Ways to cut `time` tokens into calls, as lengths."""
        edges = [e + d for e in range(self.edge, self.time, self.edge) for d in (-1, 0, 1)]
        cuts = {
            "single tokens": _lengths(range(self.time), self.time),
            "prime lengths": _lengths(torch.tensor(_PRIMES).cumsum(0).tolist(), self.time),
            "around chunk edges": _lengths(edges, self.time),
            "one token after the first call": _lengths([self.time - 1], self.time),
        }
        for i in range(2):
            points = torch.randint(1, self.time, (6,), generator=self.generator).tolist()
            cuts[f"random lengths {i + 1}"] = _lengths(points, self.time)
        return cuts


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Within it float32 means float32: no TF32 in torch's products and convolutions, nor in Triton's products."""
    before = os.environ.get("TRITON_F32_DEFAULT")
    os.environ["TRITON_F32_DEFAULT"] = "ieee"
    try:
        with tf32(False):
            yield
    finally:
        del os.environ["TRITON_F32_DEFAULT"]
        if before is not None:
            os.environ["TRITON_F32_DEFAULT"] = before


def _lengths(points: Iterable[int], time: int) -> list[int]:
    edges = [0, *sorted({p for p in points if 0 < p < time}), time]
    return [b - a for a, b in itertools.pairwise(edges)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """`||actual - expected|| / ||expected||` in float64; infinite for other shapes or values that are not finite."""
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    a, b = actual.detach().double(), expected.detach().to(actual.device).double()
    difference = (a - b).norm().item()
    return difference / max(b.norm().item(), 1e-12) if difference else 0.0


def in_calls(
    mixer: Callable[..., Any], x: Tensor, lengths: list[int], state: MixerState | None = None
) -> tuple[Tensor, MixerState | None]:
    """`x` in calls of the given lengths that carry the state."""
    ys = []
    for piece in x.split(lengths, dim=1):
        y, state = mixer(piece, state, return_state=True)
        ys.append(y)
    return torch.cat(ys, dim=1), state


def gradients(
    mixer: Callable[..., Any], parameters: Iterable[tuple[str, Tensor]], x: Tensor, weight: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """`y`, and the gradients of `sum(weight * y)` by name: of `x` and of all trainable `parameters`."""
    leaves = {"x": x.detach().clone().requires_grad_(), **{n: p for n, p in parameters if p.requires_grad}}
    y, _ = mixer(leaves["x"])
    found = torch.autograd.grad((y * weight).sum(), list(leaves.values()), materialize_grads=True)
    return y.detach(), dict(zip(leaves, found))


def contents(state: MixerState) -> list[Tensor]:
    """A copy of every value that the state holds, for comparing it with itself later."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor.detach().clone())
        return tensor

    state.map_tensors(collect)
    return found
