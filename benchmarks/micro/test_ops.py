"""Every op on every backend that runs here, forward and forward with backward, at a short and at a long length;
references, which are slow, at the short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mixerzoo.mixers.doctor.cases import bundled_ops, cast
from mixerzoo.mixers.ops.dispatch import CannotRunError, Op
from mixerzoo.mixers.ops.problems import Problem

from .conftest import DEVICE, DTYPE, LENGTHS, Point, backends
from .problems import problems_of

DIRECTIONS = ("forward", "train")


def cases() -> Iterator[Any]:
    """Parameters `problem, point`, those of a group next to each other."""
    for op in bundled_ops().values():
        for length in LENGTHS:
            for problem in problems_of(op):
                yield from _cases(op, problem, length)


def _cases(op: Op, problem: Problem, length: int) -> Iterator[Any]:
    for backend, marks in backends(op).items():
        if op.backends[backend].trust == "never" and length > LENGTHS[0]:
            continue
        for direction in DIRECTIONS:
            point = Point(op.name, problem.variant, backend, direction, length)
            name = "-".join(filter(None, (op.name, problem.variant, backend, direction, str(length))))
            yield pytest.param(problem, point, id=name, marks=marks)


@pytest.mark.parametrize(("problem", "point"), cases())
def test_op(problem: Problem, point: Point, timed: Any) -> None:
    try:
        timed(call(problem, point), point)
    except CannotRunError as error:
        pytest.skip(f"{point.op}, {point.backend}: {error.reason}")


def call(problem: Problem, point: Point) -> Callable[[], object]:
    """One sequence through the op, and back where the point says so."""
    drawn = problem.inputs(1, point.length, torch.Generator().manual_seed(0))
    x = cast(problem, drawn, DTYPE, DEVICE)
    if point.direction == "forward":
        return lambda: _forward(problem, x, point.backend)
    wanted = [t.requires_grad_() for t in x.values() if t.is_floating_point()]
    return lambda: _train(problem, x, point.backend, wanted)


def _forward(problem: Problem, x: dict[str, torch.Tensor], backend: str) -> object:
    with torch.no_grad():
        return problem.run(x, None, backend)


def _train(problem: Problem, x: dict[str, torch.Tensor], backend: str, wanted: list[torch.Tensor]) -> object:
    output, _ = problem.run(x, None, backend)
    return torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
