"""The Triton kernels of FwPKM against plain torch and the definition.

test_fwpkm_triton.py runs this file, with TRITON_INTERPRET=1 in a process of its own; with a CUDA device, also as it is:
then the kernels are compiled.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from mixerzoo.mixers.ops.fwpkm import FwpkmOptions, fwpkm
from mixerzoo.mixers.ops.fwpkm import triton as backend
from mixerzoo.mixers.ops.fwpkm.addressing import address
from mixerzoo.mixers.ops.fwpkm.primitives import TORCH, Accesses, Rows, Window
from mixerzoo.mixers.ops.fwpkm.triton import TRITON
from torch.utils._python_dispatch import _disable_current_modes

from .fwpkm_problems import CONFIGURATIONS, check_against_definition, memories, problem
from .launches import Launches, per_chunk

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def draw(*shape, seed=0, std=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(std).to(DEVICE, dtype)


def check_address(memories, heads, n, n_subkeys, d, top_k, score, dtype=torch.float64):
    # as the backend has them: a view of the tokens, and one set of keys for all memories
    halves = draw(memories, n, heads, 2, d, dtype=dtype).permute(0, 2, 3, 1, 4).requires_grad_()
    keys = draw(heads, 2, n_subkeys, d, seed=1, std=0.5, dtype=dtype).requires_grad_()
    results = []
    for kernels in (TORCH, TRITON):
        options = FwpkmOptions(top_k=top_k, chunk_size=n + 1, score=score)
        found = address(halves, keys.expand(memories, *keys.shape), options, kernels)
        loss = (found.scores * draw(*found.scores.shape, seed=2, dtype=dtype)).sum()
        loss = loss + (found.total * draw(*found.total.shape, seed=3, dtype=dtype)).sum()
        gradients = torch.autograd.grad(loss, (halves, keys))
        results.append((found.scores, found.codes.accesses.ids, found.total, found.pairs, found.slots, *gradients))
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for found, expected in zip(results[1], results[0]):
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("score", ["idw", "dot"])
@pytest.mark.parametrize(
    ("memories", "heads", "n", "n_subkeys", "d", "top_k"),
    [(2, 1, 3, 32, 16, 1), (1, 8, 3, 32, 5, 4), (1, 1, 2, 1024, 32, 32), (2, 3, 70, 33, 40, 5), (1, 1, 1, 2, 1, 2)],
)
def test_addresses_and_their_gradients(memories, heads, n, n_subkeys, d, top_k, score):
    check_address(memories, heads, n, n_subkeys, d, top_k, score)


def test_addresses_in_float32():
    check_address(1, 1, 8, 512, 256, 8, "idw", torch.float32)


def test_products_of_the_precision_that_torch_is_allowed(monkeypatch):
    """Which one reaches the kernel; what it does there no interpreter shows, so the scores stay as they are."""
    precisions, launch = [], backend._launch
    monkeypatch.setattr(backend, "_launch", lambda *a, **c: (precisions.append(c["PRECISION"]), launch(*a, **c)))
    arguments = draw(1, 1, 2, 5, 8, dtype=torch.float32), draw(1, 1, 2, 16, 8, dtype=torch.float32), 3, "idw"
    exact = TRITON.address(*arguments)
    with monkeypatch.context() as patched:
        patched.setattr(backend, "product_precision", lambda dtype: "tf32")
        rounded = TRITON.address(*arguments)
    assert precisions == ["ieee", "tf32"]
    torch.testing.assert_close(rounded[0], exact[0], rtol=2e-2, atol=2e-2)


def test_equal_scores_give_distinct_places():
    halves, keys = torch.ones(1, 1, 2, 5, 4, device=DEVICE), torch.zeros(1, 1, 2, 8, 4, device=DEVICE)
    best, index, total, pairs = TRITON.address(halves, keys, 4, "idw")
    assert best.eq(best[0, 0, 0, 0, 0]).all() and total.eq(total[0, 0, 0, 0]).all()
    for places, size in ((index, 8), (pairs, 16)):
        assert all(len(set(p)) == 4 and 0 <= min(p) <= max(p) < size for p in places.flatten(0, -2).tolist())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_places_stay_in_range_whatever_the_input(value):
    halves, keys = torch.full((1, 1, 2, 3, 4), value, device=DEVICE), torch.zeros(1, 1, 2, 5, 4, device=DEVICE)
    _, index, _, pairs = TRITON.address(halves, keys, 3, "idw")
    assert index.min() >= 0 and index.max() < 5
    assert pairs.min() >= 0 and pairs.max() < 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "slots", "rows", "d"), [(5, 8, 7, 64), (2, 256, 100, 1024), (40, 3, 5, 65), (1, 1, 1, 600), (33, 9, 400, 7)]
)
def test_rows_are_read_multiplied_and_written(n, slots, rows, d, dtype):
    table, x, weights = draw(rows, d, dtype=dtype), draw(n, d, seed=1, dtype=dtype), draw(n, slots, seed=2, dtype=dtype)
    ids = torch.randint(rows, (n, slots), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    ids[:, 0] = 0  # one row that everyone accesses
    accesses = Accesses.to(ids, rows)
    sorted_weights = accesses.sort(weights)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for name, arguments in (
        ("read", (table, accesses, weights)),
        ("gather_dot", (table, accesses, x)),
        ("spread", (accesses, x, sorted_weights)),
        ("spread", (accesses, x[:, :1], sorted_weights)),
    ):
        expected, found = getattr(TORCH, name)(*arguments), getattr(TRITON, name)(*arguments)
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
        assert found.equal(getattr(TRITON, name)(*arguments)), f"{name} does not repeat itself"
    tables = [[table.clone(), -table] for _ in range(2)]
    for kernels, mine in zip((TORCH, TRITON), tables):
        kernels.add(mine[0], accesses, x, sorted_weights)
        kernels.add_both(*mine, accesses, (x, -2 * sorted_weights), (3 * x, sorted_weights))
    for expected, found in zip(*tables):
        torch.testing.assert_close(found, expected, **tolerance)
        assert not expected.abs().equal(table.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "time", "carried", "pairs", "slots", "d"),
    [(1, 9, 0, 8, 8, 64), (2, 9, 2, 7, 3, 40), (3, 21, 1, 20, 5, 7), (1, 5, 0, 5, 256, 600), (2, 4, 4, 2, 1, 1)],
)
def test_a_window_is_recalled_and_its_gradients(rows, time, carried, pairs, slots, d, dtype):
    new, n = time - carried, rows * time
    # in the middle of other windows' tokens, and targets that are no whole block
    window = Window(rows, time, carried, pairs, True, slice(2, 2 + new), slice(1, 1 + carried), slice(3, 3 + pairs))
    table, weights = draw(30, d, dtype=dtype), draw(n, slots, seed=1, dtype=dtype)
    targets = draw(rows, d, pairs + 5, seed=2, dtype=dtype).mT
    ids = torch.randint(30, (n, slots), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    accesses, d_retrieved = Accesses.to(ids, 30), draw(rows, new + 3, d, seed=4, dtype=dtype)
    results = []
    for kernels in (TORCH, TRITON):
        stored = Rows(draw(rows, new + 3, d, dtype=dtype), draw(rows, carried + 2, d, dtype=dtype), targets)
        d_targets = draw(rows, pairs + 5, d, dtype=dtype)
        error = kernels.recall(table, accesses, weights, window, stored)
        forgotten = Rows(torch.zeros_like(stored.retrieved), None, targets)  # nobody wants a gradient
        assert kernels.recall(table, accesses, weights, window, forgotten).equal(error)
        assert forgotten.retrieved[:, window.output].equal(stored.retrieved[:, window.output])
        found = kernels.recall_backward(2 - table, accesses, weights, window, stored, d_retrieved, d_targets)
        results.append((error, stored.retrieved, stored.early, *found, d_targets))
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for found, expected in zip(results[1], results[0]):
        torch.testing.assert_close(found, expected, **tolerance)


def test_a_table_that_is_no_whole_block_is_not_written_to():
    table, x = draw(4, 6)[:, :3], draw(2, 3)
    accesses = Accesses.to(torch.zeros(2, 1, dtype=torch.long, device=DEVICE), 4)
    with pytest.raises(ValueError, match="contiguous table"):
        TRITON.add(table, accesses, x, draw(2, 1).flatten())


@settings(max_examples=15, deadline=None)
@given(CONFIGURATIONS)
def test_any_configuration_equals_the_definition(configuration):
    check_against_definition("triton", configuration, DEVICE)


@pytest.mark.parametrize(("gradients", "kernels", "aten"), [(False, 2, 0), (True, 5, 2)])
def test_a_chunk_costs_few_launches(gradients, kernels, aten, monkeypatch):
    names, launch, of_ours = [], backend._launch, {}

    def uncounted(kernel, *arguments, **constants):
        names.append(kernel)
        with _disable_current_modes():  # the interpreter calls torch
            launch(kernel, *arguments, **constants)

    monkeypatch.setattr(backend, "_launch", uncounted)

    def run(chunks):
        inputs = [t.to(DEVICE).requires_grad_(gradients) for t in problem(batch=2, time=8 * chunks)]
        names.clear()
        with Launches() as launches, torch.set_grad_enabled(gradients):
            output = fwpkm(*inputs, top_k=3, chunk_size=8, key_objective="none", backend="triton")
            if gradients:
                torch.autograd.grad(output.retrieved.sum(), inputs)
        of_ours[chunks] = len(names)
        return launches

    launches, waits = per_chunk(run, 2)
    assert (launches, waits) == (aten, 0)
    assert (of_ours[4] - of_ours[2]) / 2 == kernels


def test_a_call_repeats_itself_bit_by_bit():
    inputs = [
        draw(2, 20, 2, 8, dtype=torch.float32),
        draw(2, 20, 12, seed=1, dtype=torch.float32),
        None,
        draw(2, 2, 6, 4, seed=3, std=0.3, dtype=torch.float32),
        draw(36, 12, seed=4, std=0.3, dtype=torch.float32).requires_grad_(),
    ]
    results = []
    for _ in range(2):
        retrieved = fwpkm(*inputs, top_k=3, chunk_size=8, key_objective="none", backend="triton").retrieved
        results.append((retrieved, *torch.autograd.grad(retrieved.square().sum(), inputs[4])))
    assert all(a.equal(b) for a, b in zip(*results))


@pytest.mark.parametrize("cuts", [[5, 1, 6, 2], [1, 1, 8, 4]])
def test_any_cut_gives_the_uncut_result(cuts):
    inputs, memory = (draw(2, 14, 2, 8), draw(2, 14, 6, seed=1)), (draw(2, 2, 5, 4, seed=3), draw(25, 6, seed=4))
    options = {"top_k": 3, "chunk_size": 4, "backend": "triton"}
    whole = fwpkm(*inputs, None, *memory, **options, return_state=True)
    state, parts = None, []
    for piece in zip(*(t.split(cuts, dim=1) for t in inputs)):
        output = fwpkm(*piece, None, *memory, **options, state=state, return_state=True)
        state = output.state
        parts.append(output.retrieved)
    torch.testing.assert_close(torch.cat(parts, 1), whole.retrieved, rtol=1e-10, atol=1e-12)
    for found, expected in zip(memories(state, *memory), memories(whole.state, *memory)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
