"""How many launches a chunk of FwPKM costs, and where the host would wait for a GPU: counted on the CPU."""

import pytest
import torch
from mixerzoo.mixers.ops.fwpkm import fwpkm

from .fwpkm_problems import problem
from .launches import Launches, per_chunk

CHUNK = 8


def counted(chunks, gradients=False, state=None, **options):
    inputs = problem(batch=2, time=CHUNK * chunks, n_subkeys=16)
    inputs = [t.requires_grad_(gradients) for t in inputs]
    with Launches() as launches, torch.set_grad_enabled(gradients):
        output = fwpkm(*inputs, top_k=3, chunk_size=CHUNK, state=state, **options)
        if gradients:
            torch.autograd.grad(output.retrieved.sum(), inputs)
    return launches


def test_the_counter_counts():
    x, index = torch.randn(4, 3), torch.tensor([1, 2])
    with Launches() as launches:
        x.view(12)[2:].mul(2).unsqueeze(0)
        x[index]
    assert launches.launches == {"mul": 1, "index": 1} and not launches.waits
    with Launches() as launches:
        (x[x > 0], x.unique(), x.sum().item(), x.nonzero(), x.tolist(), bool(x.sum()), index.repeat_interleave(index))
        index.repeat_interleave(index, output_size=3)
    names = ("index", "_unique2", "_local_scalar_dense", "nonzero", "tolist", "repeat_interleave")
    assert launches.waits == dict.fromkeys(names, 1) | {"_local_scalar_dense": 2}


@pytest.mark.parametrize(
    ("options", "forward", "training"),
    [
        ({"key_objective": "none"}, 5, 19),
        ({"key_objective": "none", "boundary": "drop"}, 5, 19),
        ({"key_objective": "none", "scope": "batch"}, 5, 19),
        ({"key_objective": "none", "clip": 0.1, "weight_decay": 0.1}, 18, 54),
        ({"key_objective": "address"}, 64, 139),
    ],
    ids=str,
)
def test_a_chunk_costs_few_launches_and_no_wait(options, forward, training):
    for gradients, most in ((False, forward), (True, training)):
        launches, waits = per_chunk(lambda chunks, g=gradients: counted(chunks, g, **options))
        assert 0 < launches <= most
        assert waits == 0


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("key_objective", ["none", "address"])
def test_a_call_waits_once_and_once_more_for_a_state(key_objective, gradients):
    options = {"key_objective": key_objective}
    assert counted(5, gradients, **options).waits == {"tolist": 1}  # how many rows are touched
    assert counted(5, gradients, **options, return_state=True).waits == {"tolist": 1, "nonzero": 1}


@pytest.mark.parametrize("key_objective", ["memory", "both"])
def test_keys_that_follow_the_memory_wait_for_each_chunk(key_objective):
    """Which rows come next depends on the chunk before: it is rewritten ahead, see `_rehearse`."""
    launches, waits = per_chunk(lambda chunks: counted(chunks, key_objective=key_objective))
    assert waits == 2 and launches <= 210


@torch.no_grad()
def test_a_decoded_token_waits_for_nothing_until_a_chunk_ends():
    *tokens, keys, values = problem(batch=2, time=5 * CHUNK, n_subkeys=16)
    options = {"top_k": 3, "chunk_size": CHUNK, "return_state": True}
    state, waits = None, []
    for t in range(tokens[0].shape[1]):
        with Launches() as launches:
            state = fwpkm(*(x[:, t : t + 1] for x in tokens), keys, values, **options, state=state).state
        waits.append(launches.waits.total())
        assert launches.launches.total() <= (120 if (t + 1) % CHUNK else 260)
    assert waits == ([0] * (CHUNK - 1) + [2]) * 5
