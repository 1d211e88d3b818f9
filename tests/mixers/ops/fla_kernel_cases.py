"""Our backends `fla` with the library's own Triton kernels, against plain torch; run by test_fla_kernels.py."""

import pytest
import torch
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
