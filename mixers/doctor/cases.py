"""The cases that a backend is proven in: a variant of the op, a dtype and a class of head sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..ops.dispatch import Backend, Op
from ..ops.problems import Problem
from ..ops.verdicts import Key, Verdict, width_class

DTYPES = ("bfloat16", "float32", "float16")


class Case(NamedTuple):
    """One backend of one op in one case; width: the largest head size of its class."""

    op: str
    backend: str
    variant: str
    dtype: str
    width: int

    @property
    def key(self) -> Key:
        return Key(self.variant, self.dtype, width_class(self.width))

    def __str__(self) -> str:
        return " ".join(filter(None, (self.op, self.backend, self.variant, self.dtype, str(self.width))))


def cases(op: Op, backend: Backend, dtypes: Sequence[str], widths: Sequence[int]) -> Iterator[Case]:
    """All cases of one backend; a problem that an op does not have at some width has none there."""
    problems = op.load_problems()
    for width in widths:
        for problem in problems(width):
            for dtype in dtypes:
                yield Case(op.name, backend.name, problem.variant, dtype, width)


def problem_of(op: Op, variant: str, width: int) -> Problem | None:
    """The problem of a variant at some width, if the op has one."""
    return next((p for p in op.load_problems()(width) if p.variant == variant), None)


def dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def make_verdict(op: Op, case: Case, fields: dict[str, Any]) -> Verdict:
    """What is now known of a case."""
    versions = op.backends[case.backend].versions
    about = {**case._asdict(), "width": case.key.width, "source": op.source, "libraries": versions}
    return Verdict.model_validate({**about, **fields})
