"""What the backends of softmax attention and its kin are proven on is what they are then chosen for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops import attention, block_attention, path_attention, stick_breaking
from mixerzoo.mixers.ops.dispatch import Call, Op

OPS = [op.OP for op in (attention, block_attention, path_attention, stick_breaking)]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls by which backends are chosen."""
    found: list[Call] = []
    select = Op.select

    def spy(self: Op, backend: str, device: torch.device, call: Call | None = None) -> Any:
        assert call is not None
        found.append(call)
        return select(self, backend, device, call)

    monkeypatch.setattr(Op, "select", spy)
    return found


@pytest.mark.parametrize(("op", "index"), [(op, i) for op in OPS for i in range(len(op.load_problems()(16)))])
def test_each_is_of_its_variant_and_its_backends_agree(op: Op, index: int, called: list[Call]) -> None:
    problem = op.load_problems()(16)[index]
    inputs = {n: t.requires_grad_() for n, t in problem.inputs(2, 130, torch.Generator().manual_seed(0)).items()}
    results = []
    for backend in ("auto", "reference"):
        y, _ = problem.run(inputs, None, backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    assert {(c.variant, c.width, c.tokens, c.gradient) for c in called} == {(problem.variant, 16, 130, True)}
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("problem", attention.OP.load_problems()(16), ids=lambda p: p.variant)
def test_a_continued_call_is_a_cached_one(problem: Any, called: list[Call]) -> None:
    inputs = problem.inputs(1, 140, torch.Generator().manual_seed(0))
    whole, _ = problem.run(inputs, None, "auto")
    called.clear()
    parts, state = [], None
    for start, end in ((0, 100), (100, 101), (101, 140)):
        piece = {n: t if n in problem.fixed else t[:, start:end] for n, t in inputs.items()}
        y, state = problem.run(piece, state, "auto")
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    names = {v for v in problem.variant.split("+") if v}
    # a window leaves one token nothing to be cut away
    assert [set(c.variant.split("+")) for c in called[2:]] == [(names | {"cached"}) - {"window"}] * 2 + [
        names | {"cached"}
    ] * 2
