"""What the backends of softmax attention and its kin are proven on is what they are then chosen for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer, list_mixers
from mixerzoo.mixers.ops import attention, block_attention, path_attention, stick_breaking
from mixerzoo.mixers.ops.dispatch import Call, Op
from mixerzoo.mixers.registry import mixer_options

OPS = [op.OP for op in (attention, block_attention, path_attention, stick_breaking)]


# mixers with other options than their small ones, which make other cases of the ops
FURTHER: list[tuple[str, dict[str, Any]]] = [
    ("softmax_attention", {"sinks": True}),
    ("path_attention", {"forgetting": True}),
    ("stick_breaking_attention", {"attend_current": True}),
    (
        "native_sparse_attention",
        {"heads": 16, "kv_heads": 1, "block_size": 16, "compression_size": 16, "compression_stride": 8},
    ),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Call]]:
    """Op and call of every choice that is made."""
    found: list[tuple[str, Call]] = []
    select = Op.select

    def spy(self: Op, backend: str, device: torch.device, call: Call | None = None) -> Any:
        found.extend([] if call is None else [(self.name, call)])
        return select(self, backend, device, call)

    monkeypatch.setattr(Op, "select", spy)
    return found


@pytest.mark.parametrize(("op", "index"), [(op, i) for op in OPS for i in range(len(op.load_problems()(16)))])
def test_each_is_of_its_variant_and_its_backends_agree(op: Op, index: int, calls: list[tuple[str, Call]]) -> None:
    problem = op.load_problems()(16)[index]
    inputs = {n: t.requires_grad_() for n, t in problem.inputs(2, 130, torch.Generator().manual_seed(0)).items()}
    results = []
    for backend in ("auto", "reference"):
        y, _ = problem.run(inputs, None, backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    assert {(c.variant, c.width, c.tokens, c.gradient) for _, c in calls} == {(problem.variant, 16, 130, True)}
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("problem", attention.OP.load_problems()(16), ids=lambda p: p.variant)
def test_a_continued_call_is_a_cached_one(problem: Any, calls: list[tuple[str, Call]]) -> None:
    inputs = problem.inputs(1, 140, torch.Generator().manual_seed(0))
    whole, _ = problem.run(inputs, None, "auto")
    calls.clear()
    parts, state = [], None
    for start, end in ((0, 100), (100, 101), (101, 140)):
        piece = {n: t if n in problem.fixed else t[:, start:end] for n, t in inputs.items()}
        y, state = problem.run(piece, state, "auto")
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    names = {v for v in problem.variant.split("+") if v}
    # a window leaves one token nothing to be cut away
    assert [set(c.variant.split("+")) for _, c in calls[2:]] == [(names | {"cached"}) - {"window"}] * 2 + [
        names | {"cached"}
    ] * 2


@torch.no_grad()
def test_every_case_that_mixers_make_of_the_ops_has_a_problem(calls: list[tuple[str, Call]]) -> None:
    """But for those that no backend which must be proven takes."""
    for name, more in [(name, {}) for name in list_mixers(family="softmax")] + FURTHER:
        small = {n: o.small for n, o in mixer_options(name).items() if o.small is not None}
        mixer = create_mixer(name, d_model=32, **small | more)
        mixer(torch.randn(1, 20, 32))
        _, state = mixer(torch.randn(1, 20, 32), return_state=True)
        for time in (1, 3):
            mixer(torch.randn(1, time, 32), state)
    for op in OPS:
        made = {call.variant for name, call in calls if name == op.name}
        proven = {problem.variant for problem in op.load_problems()(16)}
        taken = [b for b in op.backends.values() if b.trust == "proven"]
        rest = {v for v in made - proven if any(not b.refuses(Call(torch.half, 16, 9, False, v)) for b in taken)}
        assert made & proven and not rest, f"{op.name} is called in the cases {rest}, which nothing is proven on"
