"""What library kernels are proven on: the cases that the mixers make of the ops, each a call of the op itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer, list_mixers
from mixerzoo.mixers.ops import (
    log_linear,
    recurrence,
    ridge_regression,
    scan,
    selective_scan,
    short_convolution,
    slot_attention,
    ttt,
)
from mixerzoo.mixers.ops.dispatch import Call, Op
from mixerzoo.mixers.registry import mixer_options

OPS = [
    m.OP
    for m in (log_linear, recurrence, ridge_regression, scan, selective_scan, short_convolution, slot_attention, ttt)
]
PROBLEMS = [(op, problem) for op in OPS for problem in op.load_problems()(16)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Call]]:
    """Op and call of every choice that is made."""
    seen: list[tuple[str, Call]] = []
    select = Op.select

    def spying(op: Op, backend: str, device: torch.device, call: Call | None = None) -> Any:
        if call is not None:
            seen.append((op.name, call))
        return select(op, backend, device, call)

    monkeypatch.setattr(Op, "select", spying)
    return seen


@pytest.mark.parametrize(("op", "problem"), PROBLEMS, ids=lambda x: getattr(x, "name", getattr(x, "variant", None)))
def test_a_problem_is_a_call_of_its_variant_that_can_be_continued(op, problem, calls):
    x = problem.inputs(2, 9, torch.Generator().manual_seed(0))
    assert all(t.dtype == torch.float64 and t.device.type == "cpu" for t in x.values())
    assert set(problem.fixed) | set(problem.exact) <= set(x)
    assert all(t.shape[:2] == (2, 9) for name, t in x.items() if name not in problem.fixed)
    expected, last = problem.run(x, None, "reference")
    assert expected.shape[:2] == (2, 9) and expected.isfinite().all()
    start = {n: t if n in problem.fixed else t[:, :4] for n, t in x.items()}
    rest = {n: t if n in problem.fixed else t[:, 4:] for n, t in x.items()}
    first, state = problem.run(start, None, "auto")
    torch.testing.assert_close(first, expected[:, :4])
    if problem.carries_state:
        second, after = problem.run(rest, state, "auto")
        torch.testing.assert_close(second, expected[:, 4:])
        for found, wanted in zip(tensors(after), tensors(last), strict=True):
            torch.testing.assert_close(found, wanted)
    assert problem.variant in {call.variant for name, call in calls if name == op.name}


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    return list(state) if isinstance(state, tuple) else list(vars(state).values())


def test_ops_without_heads_are_proven_once():
    assert scan.OP.widths == short_convolution.OP.widths == (16,)


def test_every_case_that_mixers_make_of_the_ops_has_a_problem(calls):
    """But for those that all library kernels refuse."""
    for family in ("delta", "linear", "memory", "state space"):
        for name in list_mixers(family=family):
            small = {n: o.small for n, o in mixer_options(name).items() if o.small is not None}
            mixer = create_mixer(name, d_model=32, **small)
            with torch.no_grad():
                _, state = mixer(torch.randn(1, 5, 32), return_state=True)
                mixer(torch.randn(1, 1, 32), state)
    for op in OPS:
        made = {call.variant for name, call in calls if name == op.name}
        proven = {problem.variant for problem in op.load_problems()(16)}
        taken = [b for b in op.backends.values() if b.trust == "proven"]
        options = [{"dtype": d, "width": 4, "tokens": 256, "gradient": False} for d in (torch.bfloat16, torch.float32)]
        missing = {
            v for v in made - proven if any(b.refuses(Call(**o, variant=v)) is None for b in taken for o in options)
        }
        assert made and not missing, f"{op.name} is called in the cases {missing}, which nothing is proven on"
    assert {problem.variant for problem in recurrence.OP.load_problems()(16)} <= {
        call.variant for name, call in calls if name == "recurrence"
    } | {"", "normaliser"}


@pytest.mark.parametrize(
    ("op", "changes", "reason"),
    [
        (slot_attention.OP, {}, None),
        (slot_attention.OP, {"variant": "unaligned"}, "a multiple of 8 slots"),
        (slot_attention.OP, {"dtype": torch.float64}, "float64"),
        (ridge_regression.OP, {}, None),
        (
            ridge_regression.OP,
            {"variant": "adaptive_ridge+chebyshev+mix"},
            "this call has adaptive_ridge+chebyshev+mix",
        ),
        (ridge_regression.OP, {"width": 256}, "128 features per head at most, got 256"),
        (ridge_regression.OP, {"dtype": torch.float32}, "rounded to bfloat16"),
        (ridge_regression.OP, {"dtype": torch.float32, "tokens": 1}, None),
        (ridge_regression.OP, {"dtype": torch.float64}, "float64"),
        (log_linear.OP, {}, None),
        (log_linear.OP, {"dtype": torch.float64}, "float64"),
        (log_linear.OP, {"variant": "carried"}, "whole texts"),
        (log_linear.OP, {"variant": "capped"}, "this call has fewer"),
        (log_linear.OP, {"tokens": 2**17}, "fewer than 131072 tokens"),
        (scan.OP, {"dtype": torch.float32, "variant": "positive"}, None),
        (scan.OP, {"dtype": torch.float32}, "may be negative"),
        (scan.OP, {"dtype": torch.complex64, "variant": "positive"}, "complex64"),
    ],
)
def test_what_fla_does_not_compute_is_refused(op, changes, reason):
    call = Call(**{"dtype": torch.bfloat16, "width": 64, "tokens": 256, "gradient": False, **changes})
    found = op.backends["fla"].refuses(call)
    assert found is None if reason is None else reason in found


def test_calls_say_what_the_kernels_must_know(calls):
    """A scan of float32 decays and 16-bit writes is one in float32; slots and oblong values are named."""
    scan.linear_scan(torch.rand(1, 2, 3), torch.rand(1, 2, 3).bfloat16(), positive=True)
    slots = torch.rand(1, 2, 1, 12)
    slot_attention.slot_attention(*torch.rand(3, 1, 2, 1, 4).unbind(), slots, -slots)
    k, gate = torch.rand(1, 2, 1, 4), torch.rand(1, 2, 1)
    ridge_regression.ridge_regression(k, k, torch.rand(1, 2, 1, 6), log_decay=-gate, beta=gate, ridge=torch.ones(1, 4))
    log_linear.log_linear_attention(k, k, k, -gate, torch.rand(1, 2, 1, 2))
    seen = {name: (call.dtype, call.width, call.variant) for name, call in reversed(calls)}
    assert seen["scan"] == (torch.float32, 1, "positive")
    assert seen["slot_attention"] == (torch.float32, 12, "unaligned")
    assert seen["log_linear"] == (torch.float32, 4, "")
    assert seen["ridge_regression"] == (torch.float32, 6, "oblong")


@pytest.mark.parametrize(
    ("levels", "time", "variant"), [(4, 8, ""), (4, 9, "capped"), (9, 256, ""), (9, 257, "capped")]
)
def test_log_linear_attention_is_capped_where_levels_are_shared(levels, time, variant, calls):
    """More levels make no difference up to as many tokens, and do from the next one on."""
    generator = torch.Generator().manual_seed(0)
    k, scales = torch.rand(1, time, 1, 4, generator=generator), torch.rand(1, time, 1, levels + 1, generator=generator)
    gate = torch.zeros(1, time, 1)
    few, _ = log_linear.log_linear_attention(k, k, k, gate, scales[..., :levels])
    many, _ = log_linear.log_linear_attention(k, k, k, gate, scales)
    assert torch.allclose(few, many, atol=1e-6) == (not variant)
    assert calls[0][1].variant == variant
    log_linear.log_linear_attention(k, k, k, gate, scales, return_state=True)
    assert calls[-1][1].variant == "carried"
