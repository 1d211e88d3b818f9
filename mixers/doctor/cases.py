"""The cases that a backend is proven in: a variant of the op, a dtype and a class of head sizes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from .. import ops as bundled
from ..contract import small_options
from ..ops.dispatch import Call, Op, record_backends
from ..ops.problems import Inputs, Problem
from ..ops.verdicts import Key, Verdict
from ..registry import create_mixer, mixer_card

DTYPES = ("bfloat16", "float32", "float16")
TOKENS = 200  # of the sequences that are compared: a few chunks of every backend
CPU = torch.device("cpu")


class Case(NamedTuple):
    """One backend of one op in one case; variant, dtype and width as the op's calls have them. size: what its problem
    was made with."""

    op: str
    backend: str
    variant: str
    dtype: str
    width: int
    size: int

    @property
    def key(self) -> Key:
        return Key(self.variant, self.dtype, self.width)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.op, self.backend, self.variant, self.dtype, str(self.width))))


def ops_of(mixers: Iterable[str]) -> list[Op]:
    """The ops that mixers consist of: those of their cards, and what a short call of each runs beside those."""
    found: dict[str, Op] = {}
    with record_backends() as ran:
        for name in mixers:
            found |= {op.name: op for op in mixer_card(name).ops}
            with torch.no_grad():
                create_mixer(name, 32, **small_options(name))(torch.zeros(1, 2, 32))
    return list((found | {name: op for name, op in bundled_ops().items() if name in ran}).values())


def bundled_ops() -> dict[str, Op]:
    """The ops that come with mixerzoo, by name."""
    modules = (
        importlib.import_module(f"{bundled.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(bundled.__path__)
    )
    return {op.name: op for module in modules if isinstance(op := getattr(module, "OP", None), Op)}


def cases(op: Op, dtypes: Sequence[str], sizes: Sequence[int]) -> list[Case]:
    """All cases of an op, of no backend yet. Where calls of the op are of another dtype than their inputs, or of other
    head sizes than was asked for, that is what they are cases of."""
    found: dict[Key, Case] = {}
    problems = ((size, problem) for size in sizes for problem in op.load_problems()(size))
    for size, problem in problems:
        drawn = _few(problem)
        for name in dtypes:
            key = key_of(op, problem, name, drawn)
            if key.dtype != name:  # the op computes in a wider one: inputs of that dtype prove more
                key = key_of(op, problem, key.dtype, drawn)
            found.setdefault(key, Case(op.name, "", *key, size=size))
    return list(found.values())


def problem_of(op: Op, variant: str, size: int) -> Problem | None:
    """The problem of a variant at some size, if the op has one."""
    return next((p for p in op.load_problems()(size) if p.variant == variant), None)


class _Asked(Exception):
    """A call of the op was about to be made."""


def _few(problem: Problem) -> Inputs:
    """Inputs that the calls of the problem can be seen from: as many tokens as no window holds."""
    return problem.inputs(1, TOKENS // 2, torch.Generator().manual_seed(0))


def key_of(op: Op, problem: Problem, dtype: str, drawn: Inputs | None = None) -> Key:
    """What verdicts on a problem are about, as the call says that it makes of the op; the call itself is not made.

    drawn: inputs of the problem, if there are some already.
    Raises `ValueError` where the op makes no call of the problem's variant.
    """
    made: list[Call] = []

    def select(backend: str, device: torch.device, call: Call | None = None) -> Any:
        if call is not None:
            made.append(call)
            if call.variant == problem.variant:
                raise _Asked
        return Op.select(op, backend, device, call)

    x = cast(problem, _few(problem) if drawn is None else drawn, dtype_of(dtype), CPU)
    portable = next(b.name for b in op.backends.values() if b.trust == "always" and b.why_not(CPU) is None)
    vars(op)["select"] = select
    try:
        with torch.no_grad():
            _, state = problem.run(x, None, portable)
            problem.run(x, state, portable)  # some variants are those of a continued call
    except _Asked:
        return made[-1].key
    finally:
        del vars(op)["select"]
    variants = ", ".join(repr(call.variant) for call in made)
    raise ValueError(f"the problem {problem.variant!r} of {op.name} makes no such call, but {variants}")


def cast(problem: Problem, inputs: Inputs, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Copies of the inputs in a dtype, but those that are to be exact in float32 at least."""
    return {n: t.to(device, _dtype(problem, n, t, dtype), copy=True) for n, t in inputs.items()}


def _dtype(problem: Problem, name: str, t: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    if not t.is_floating_point():
        return t.dtype
    return torch.promote_types(dtype, torch.float32) if name in problem.exact else dtype


def dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def make_verdict(op: Op, case: Case, fields: dict[str, Any]) -> Verdict:
    """What is now known of a case."""
    about = {"op": op.name, "backend": case.backend, **case.key._asdict()}
    found_in = {"source": op.source, "libraries": op.backends[case.backend].versions}
    return Verdict.model_validate({**about, **found_in, **fields})
