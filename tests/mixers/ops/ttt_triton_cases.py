"""The Triton kernels of TTT-Linear against plain torch and the definition.

test_ttt_triton.py runs this file, with TRITON_INTERPRET=1 in a process of its own; with a CUDA device, also as it is:
then the kernels are compiled.
"""

import os

import pytest
import torch
from mixerzoo.mixers.ops.ttt import OP
from mixerzoo.mixers.ops.ttt import triton as backend
from mixerzoo.mixers.ops.ttt.problems import problems

from .test_ttt import arguments, assert_equal, given, gradients, run, ttt

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def moved(tensors, dtype=None):
    return {name: x.detach().to(DEVICE, dtype or x.dtype).requires_grad_() for name, x in tensors.items()}


def check(tensors, cuts=None, tolerance=1e-9):
    tensors = moved(tensors)
    expected, actual = run(tensors, cuts, backend="chunked"), run(tensors, cuts, backend="triton")
    assert_equal(actual, expected, tolerance)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors), 10 * tolerance)


@pytest.mark.parametrize(
    ("batch", "heads", "d_head", "mini_batch_size", "time"),
    [(2, 3, 4, 8, 20), (1, 2, 20, 16, 37), (1, 1, 64, 16, 32), (2, 1, 1, 3, 7), (1, 1, 16, 1, 3), (1, 1, 33, 5, 4)],
)
def test_outputs_states_and_gradients(batch, heads, d_head, mini_batch_size, time):
    check(arguments("linear", batch, time, heads, d_head, mini_batch_size))


@pytest.mark.parametrize("cuts", [[8, 21], [3, 20, 6]])
def test_calls_that_carry_a_state(cuts):
    tensors = arguments()
    check(tensors, cuts)
    tensors = moved(tensors)
    assert_equal(run(tensors, cuts, backend="triton"), run(tensors, backend="reference"))


def test_gradcheck():
    tensors = moved(arguments("linear", batch=1, time=3, heads=1, d_head=3, mini_batch_size=2))

    def function(*values):
        return run(dict(zip(tensors, values, strict=True)), backend="triton")

    assert torch.autograd.gradcheck(function, list(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("needed", [["values"], ["W1", "position_scale"]])
def test_a_part_of_the_gradients(needed):
    given_tensors = moved(arguments(batch=1, time=16))
    tensors = {name: x.detach().requires_grad_(name in needed) for name, x in given_tensors.items()}
    found = []
    for name in ("triton", "chunked"):
        output, _ = ttt(**given(tensors), backend=name)
        found.append(torch.autograd.grad(output.sin().sum(), [tensors[n] for n in needed]))
    assert_equal(*found)


def test_views_and_layouts():
    """Queries, keys and values as slices of one tensor, and features that are not neighbours."""
    tensors = moved(arguments(time=16))
    together = torch.cat([tensors[n] for n in ("queries", "keys", "values")], dim=-1)
    views = dict(zip(("queries", "keys", "values"), together.chunk(3, dim=-1)))
    views["values"] = tensors["values"].mT.contiguous().mT
    assert views["values"].stride(-1) != 1 and not views["keys"].is_contiguous()
    views["step_sizes"] = tensors["step_sizes"].mT.contiguous().mT
    assert_equal(run({**tensors, **views}, backend="triton"), run(tensors, backend="triton"), tolerance=0)


def test_weights_that_are_undone_do_not_drift():
    """The backward pass has the weights of 25 mini-batches back from those after them."""
    tensors = moved(arguments("linear", 1, 100, 1, 8, 4), torch.float32)
    exact = moved(tensors, torch.float64)
    found = gradients(run(tensors, backend="triton"), tensors)
    for actual, expected in zip(found, gradients(run(exact, backend="chunked"), exact)):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_16_bits(dtype):
    tensors = moved(arguments(d_head=16, mini_batch_size=16, time=40))
    low = {**tensors, **{n: tensors[n].detach().to(dtype).requires_grad_() for n in ("queries", "keys", "values")}}
    exact = moved(low, torch.float64)
    output, weight, *_ = run(low, backend="triton")
    expected, expected_weight, *_ = run(exact, backend="reference")
    assert output.dtype == dtype and weight.dtype == torch.float32
    assert_equal([output.double()], [expected], tolerance=2e-2)
    assert_equal([weight.double()], [expected_weight], tolerance=1e-3)
    for name, actual, exactly in zip(low, gradients([output], low), gradients([expected], exact)):
        assert actual.dtype == low[name].dtype
        assert (actual.double() - exactly).norm() < 0.03 * exactly.norm(), name


@pytest.mark.parametrize("mini_batches", [1, 4])
def test_one_launch_forward_and_one_backward(mini_batches, monkeypatch):
    launched, launch = [], backend._launch
    monkeypatch.setattr(backend, "_launch", lambda kernel, *a, **k: (launched.append(kernel), launch(kernel, *a, **k)))
    tensors = moved(arguments(batch=1, time=8 * mini_batches))
    output, _ = ttt(**given(tensors), backend="triton")
    assert launched == [backend._forward_kernel]
    torch.autograd.grad(output.sum(), list(tensors.values()))
    assert launched == [backend._forward_kernel, backend._backward_kernel]


@pytest.mark.parametrize("problem", problems(16), ids=lambda p: p.variant)
def test_the_problems_that_prove_it(problem):
    """They meet the case that they name, and both backends say the same of them."""
    inputs = {n: x.to(DEVICE) for n, x in problem.inputs(1, 40, torch.Generator().manual_seed(0)).items()}
    asked = []
    select = OP.select
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OP, "select", lambda name, device, call: (asked.append(call), select(name, device, call))[1])
        (expected, _), (found, state) = (problem.run(inputs, None, name) for name in ("reference", "triton"))
    assert {call.variant for call in asked} == {problem.variant}
    assert state.position == 40
    assert_equal([found], [expected])
