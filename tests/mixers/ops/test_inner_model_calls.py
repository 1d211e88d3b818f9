"""How many operations test-time training and Titans take for each mini-batch: on a GPU each is a launch."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import test_titans
from .test_ttt import arguments, given, ttt

VIEWS = {"_unsafe_view", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "transpose"}
VIEWS |= {"alias", "unbind", "unsqueeze", "view"}


class Calls(TorchDispatchMode):
    """Counts what reaches the kernels; views do not."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **kwargs or {})


def calls(model, mini_batches, backward):
    module = test_titans if model == "titans" else None
    tensors = (module.arguments if module else partial(arguments, model))(time=8 * mini_batches, dtype=torch.float32)
    with Calls() as counted, torch.set_grad_enabled(backward):
        output = module.run(tensors)[0] if module else ttt(**given(tensors))[0]
        if backward:
            torch.autograd.grad(output.square().sum(), list(tensors.values()))
    return counted.count


@pytest.mark.parametrize(
    ("model", "backward", "each", "once"),
    [
        ("linear", False, 5, 40),
        ("linear", True, 11, 150),
        ("mlp", False, 12, 60),
        ("mlp", True, 29, 215),
        ("titans", False, 46, 60),
        ("titans", True, 201, 90),
    ],
)
def test_calls_for_each_mini_batch_and_for_all(model, backward, each, once):
    few, many = calls(model, 8, backward), calls(model, 16, backward)
    assert (many - few) / 8 <= each
    assert few - 8 * each <= once
