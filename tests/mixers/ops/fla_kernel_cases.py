"""Our backends `fla` with the library's own Triton kernels, against plain torch; run by test_fla_kernels.py."""

import dataclasses

import pytest
import torch
from mixerzoo.mixers.ops import log_linear, ridge_regression, scan, slot_attention
from mixerzoo.mixers.ops.recurrence import fla, linear_recurrence
from mixerzoo.mixers.ops.recurrence.inputs import Inputs

from . import fla_interpreted  # noqa: F401 - before fla's kernels are called
from .test_recurrence import KERNELS, leaves, problem


def assert_close(actual, expected, limit):
    for a, e in zip(actual, expected, strict=True):
        assert e.isfinite().all()
        assert (a.double() - e.double()).norm() <= limit * e.double().norm()


# each kernel over chunks once, each way to call a kernel for one token
CASES = [*(("one token", k[1], k[2]) for k in KERNELS), *{k[3]: ("chunks", k[1], k[2]) for k in KERNELS[::-1]}.values()]


@pytest.mark.parametrize(("kind", "decay", "write"), CASES)
def test_the_recurrence_and_its_gradients(kind, decay, write):
    """Head sizes that no kernel takes; 66 tokens are two chunks with a backward pass, one is decoded."""
    time = 66 if kind == "chunks" else 1
    low = decay == "none" and write == "beta" and time > 1  # this kernel knows no float32
    dtype = torch.float16 if low else torch.float32
    given = problem(decay, write, time, batch=1, heads=1, q_heads=1, k_heads=1, d_k=11, d_v=13, dtype=dtype)
    inputs = Inputs(**{name: given.get(name) for name in Inputs._fields})
    with torch.set_grad_enabled(time > 1):
        results = [
            fla.linear_recurrence(inputs, 0.3, 64, given["state"], True),
            linear_recurrence(**given, scale=0.3, return_state=True),
        ]
    found = []
    for output, state in results:
        loss = output.float().sin().sum() + state.float().sin().sum()
        found.append((output, state, *(torch.autograd.grad(loss, leaves(given)) if time > 1 else ())))
    assert_close(*found, 4e-3 if low else 2e-5)


def test_a_floor_for_decays_changes_nothing_but_the_kernel():
    given = problem("channel", "erase", 66, batch=1, heads=1, q_heads=1, k_heads=1, d_k=11, d_v=13, dtype=torch.float32)
    given["log_decay"] = (-0.6 * given["log_decay"].detach().sigmoid()).requires_grad_()
    inputs = Inputs(**{name: given.get(name) for name in Inputs._fields[:-1]}, decay_floor=-0.6)
    found = []
    for output, state in (
        fla.linear_recurrence(inputs, 0.3, 64, given["state"], True),
        linear_recurrence(**given, decay_floor=-0.6, scale=0.3, return_state=True),
    ):
        found.append((output, state, *torch.autograd.grad(output.sin().sum() + state.sin().sum(), leaves(given))))
    assert_close(*found, 1e-4)  # it divides by products of decays


def agrees(run, leaves, limit, gradient):
    """Backend `fla` and the portable one give the same outputs, states and gradients; run: `run(backend)`."""
    found = []
    for backend in ("fla", "chunked"):
        with torch.set_grad_enabled(gradient):
            results = run(backend)
        loss = sum(x.float().sin().sum() for x in results)
        found.append([*results, *(torch.autograd.grad(loss, leaves) if gradient else ())])
    assert_close(*found, limit)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    for op in (log_linear.OP, scan.OP, slot_attention.OP, ridge_regression.OP):
        here = dataclasses.replace(op.backends["fla"], why_not=lambda device: None, refuses=lambda call: None)
        monkeypatch.setitem(op.backends, "fla", here)


@pytest.mark.parametrize(("time", "gradient"), [(3, False), (140, True)])
def test_the_scan_and_its_gradients(time, gradient):
    decay = (2 * draw(2, time, 5)).sigmoid()
    decay[0, 1], decay[1, 2, :2] = 0, 1e-20
    leaves = [x.requires_grad_() for x in (decay, draw(2, time, 5), draw(2, 5))]

    def run(backend):
        return scan.linear_scan(*leaves[:2], positive=True, state=leaves[2], return_state=True, backend=backend)

    agrees(run, leaves, 1e-5, gradient)


@pytest.mark.parametrize(("q_heads", "time", "gradient"), [(2, 1, False), (1, 66, True)])
def test_slot_attention_and_its_gradients(q_heads, time, gradient):
    log_decay = torch.nn.functional.logsigmoid(draw(1, time, 1, 8)) / 4
    inputs = [draw(1, time, q_heads, 11), draw(1, time, 1, 11), draw(1, time, 1, 13), -log_decay.expm1(), log_decay]
    leaves = [x.requires_grad_() for x in (*inputs, draw(1, 1, 8, 11), draw(1, 1, 8, 13))]

    def run(backend):
        state = (leaves[5], leaves[6])
        y, after = slot_attention.slot_attention(*leaves[:5], state=state, return_state=True, backend=backend)
        return y, *after

    agrees(run, leaves, 1e-5, gradient)


@pytest.mark.parametrize(("time", "gradient"), [(1, False), (66, True)])
def test_ridge_regression_and_its_gradients(time, gradient):
    keys = torch.nn.functional.normalize(draw(1, time, 1, 11), dim=-1)
    seen = torch.nn.functional.normalize(draw(1, 20, 1, 11), dim=-1)
    gates = {
        "log_decay": -draw(1, time, 1).exp() / 20,
        "beta": draw(1, time, 1).sigmoid(),
        "ridge": 1 + draw(1, 11) ** 2,
    }
    leaves = [draw(1, time, 1, 11), keys, draw(1, time, 1, 11), *gates.values(), seen, draw(1, 1, 11, 11)]
    leaves = [x.requires_grad_() for x in leaves]

    def run(backend):
        gram = leaves[6].transpose(1, 2).mT @ leaves[6].transpose(1, 2)  # symmetric, and so its gradient counts
        state = ridge_regression.RidgeState(gram, leaves[7])
        options = {**dict(zip(gates, leaves[3:6])), "state": state, "return_state": True, "backend": backend}
        y, after = ridge_regression.ridge_regression(*leaves[:3], **options)
        return y, after.gram, after.memory

    agrees(run, leaves, 5e-3 if gradient else 5e-4, gradient)  # it rounds to 16 bit, and adds 1e-5 to divisors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_log_linear_attention_and_its_gradients(dtype):
    """Its products want the weights of levels in the dtype of values."""
    log_decay, scales = -draw(1, 140, 2).exp() / 10, draw(1, 140, 2, 9).exp()
    read = [x.to(dtype) for x in (draw(1, 140, 1, 11) / 4, draw(1, 140, 1, 11), draw(1, 140, 2, 13))]
    leaves = [*read, log_decay, scales]
    leaves = [x.requires_grad_() for x in leaves]
    limit = 1e-5 if dtype == torch.float32 else 2e-2

    def run(backend):
        return [log_linear.log_linear_attention(*leaves, backend=backend)[0]]

    agrees(run, leaves, limit, True)
