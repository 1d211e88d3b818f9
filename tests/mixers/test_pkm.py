"""Product-key memory: the fast selection against the definition, its options, its optimizer group, sparse gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.mixers import check_mixer, create_mixer, mixer_card
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.ops.pkm import pkm
from torch.nn import functional as F

BACKENDS = ("factored", "reference")
SMALL = {"heads": 2, "top_k": 3, "n_subkeys": 5, "d_k": 8}


def problem(seed=0, batch=2, time=7, heads=2, d_k=8, d_v=6, n_subkeys=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(batch, time, heads, d_k), draw(heads, 2, n_subkeys, d_k // 2), draw(n_subkeys**2, d_v)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    time=st.integers(1, 9),
    heads=st.integers(1, 4),
    n_subkeys=st.integers(1, 12),
    top_k=st.integers(1, 12),
    score=st.sampled_from(["dot", "idw"]),
)
def test_fast_selection_equals_definition(seed, batch, time, heads, n_subkeys, top_k, score):
    inputs = [t.requires_grad_() for t in problem(seed, batch, time, heads, n_subkeys=n_subkeys)]
    results = []
    for backend in BACKENDS:
        output = pkm(*inputs, top_k=min(top_k, n_subkeys), score=score, backend=backend)
        gradients = torch.autograd.grad(output.retrieved.sin().sum(), inputs)
        results.append((output.retrieved, output.slots, output.weights, *gradients))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_best_slots_are_those_of_the_full_product_keys(oracle):
    """Against a plain search: every key of the table written out, one token and head at a time."""
    queries, keys, values = problem(heads=3)
    output = pkm(queries, keys, values, top_k=4)
    n, expected = keys.shape[2], torch.zeros_like(output.retrieved)
    for head in range(3):
        full = torch.stack([torch.cat([keys[head, 0, i], keys[head, 1, j]]) for i in range(n) for j in range(n)])
        for b, t in itertools.product(range(2), range(7)):
            scores = full @ queries[b, t, head]
            best = sorted(range(n * n), key=lambda slot: -scores[slot])[:4]
            assert output.slots[b, t, head].tolist() == best
            torch.testing.assert_close(output.weights[b, t, head], scores[best].softmax(0))
            expected[b, t] += scores[best].softmax(0) @ values[best]
    oracle("pkm", "a plain search of every key of the table", output.retrieved, expected, limit=1e-12)


@pytest.mark.parametrize("score", ["dot", "idw"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, score):
    inputs = [t.requires_grad_() for t in problem(seed=3, batch=1, time=3)]
    assert torch.autograd.gradcheck(lambda *x: pkm(*x, top_k=3, score=score, backend=backend).retrieved, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_stay_finite(backend):
    queries, keys, values = problem()
    queries, keys = torch.ones_like(queries).requires_grad_(), torch.zeros_like(keys).requires_grad_()
    for score in ("dot", "idw"):
        output = pkm(queries, keys, values, top_k=4, score=score, backend=backend)
        torch.testing.assert_close(output.weights, torch.full_like(output.weights, 1 / 4))
        assert all(len(set(slots)) == 4 for slots in output.slots.flatten(0, 2).tolist())
        gradients = torch.autograd.grad(output.retrieved.sum(), (queries, keys))
        assert all(g.isfinite().all() for g in gradients)


def test_low_precision_values_are_read_in_their_own_dtype():
    """A cast of the table would cost as much memory as the table; scores are float32 all the same."""
    queries, keys, values = problem(dtype=torch.bfloat16)
    output = pkm(queries, keys, values, top_k=3)
    assert output.retrieved.dtype == torch.bfloat16 and output.weights.dtype == torch.float32
    exact = pkm(queries.double(), keys.double(), values.double(), top_k=3)
    torch.testing.assert_close(output.retrieved.double(), exact.retrieved, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_gradient_is_the_dense_one_at_the_rows_that_were_read(backend):
    queries, keys, values = problem(time=1, n_subkeys=8)
    values.requires_grad_()
    gradients = []
    for sparse in (False, True):
        output = pkm(queries, keys, values, top_k=3, sparse_gradient=sparse, backend=backend)
        gradients.append(torch.autograd.grad(output.retrieved.sin().sum(), values)[0])
    dense, sparse = gradients
    assert sparse.is_sparse and not dense.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert sparse.coalesce().indices()[0].tolist() == sorted(set(output.slots.flatten().tolist()))


def test_sparse_adam_trains_only_what_was_read():
    mixer = create_mixer("pkm", 8, **{**SMALL, "n_subkeys": 8, "sparse_gradient": True})
    before = mixer.values.detach().clone()
    mixer(torch.randn(1, 1, 8))[0].square().sum().backward()
    torch.optim.SparseAdam([mixer.values]).step()
    changed = (mixer.values != before).any(1)
    assert 1 <= changed.sum() <= SMALL["heads"] * SMALL["top_k"]
    assert changed.equal(mixer.values.grad.to_dense().ne(0).any(1))


def test_backend_is_recorded():
    with record_backends() as record:
        pkm(*problem(), top_k=3)
    assert record == {"pkm": {"factored"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 6}, r"top_k must be in 1\.\.n_subkeys, got 6 and n_subkeys 5"),
        ({"top_k": 0}, r"top_k must be in 1\.\.n_subkeys, got 0"),
        ({"score": "cosine"}, "score must be one of idw, dot, got 'cosine'"),
        ({"backend": "cuda"}, "has no backend 'cuda'"),
    ],
)
def test_unfit_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pkm(*problem(), **{"top_k": 3} | change)


def test_unfit_sizes_are_refused():
    queries, keys, values = problem()
    with pytest.raises(ValueError, match=r"need keys of shape \[2, 2, n_subkeys, 3\], got \[2, 2, 5, 4\]"):
        pkm(queries[..., :6], keys, values, top_k=3)
    with pytest.raises(ValueError, match="5 sub-keys address 25 slots, but values has 24 rows"):
        pkm(queries, keys, values[:24], top_k=3)
    with pytest.raises(ValueError, match=r"pkm expects queries \[batch, time, heads, d_k\]"):
        pkm(queries[0], keys, values, top_k=3)


def test_contract_of_other_options():
    options = {"d_v": 6, "gated": True, "score": "idw", "query_norm": "none", "heads": 1, "top_k": 8}
    check_mixer("pkm", options=options, only=range(1, 11))


def test_it_keeps_nothing_of_the_past():
    mixer = create_mixer("pkm", 8, **SMALL)
    assert mixer_card("pkm").role == "feed_forward"
    x = torch.randn(2, 9, 8)
    y, state = mixer(x, None, True)
    assert state.nbytes == 0 and state.position == 9
    torch.testing.assert_close(mixer(x.flip(1))[0].flip(1), y)


def test_the_layer_is_what_its_docstring_says():
    mixer = create_mixer("pkm", 8, **SMALL, d_v=6, gated=True)
    x = torch.randn(2, 4, 8)
    queries = F.rms_norm(mixer.q_proj(x), (16,), eps=1e-5)
    read = pkm(queries.unflatten(-1, (2, 8)), mixer.keys, mixer.values, top_k=3, backend="reference").retrieved
    expected = mixer.o_proj(read * F.silu(mixer.g_proj(x)))
    torch.testing.assert_close(mixer(x)[0], expected)
    plain = create_mixer("pkm", 8, **SMALL)
    assert plain.g_proj is None and plain.o_proj is None and plain.values.shape == (25, 8)
    assert create_mixer("pkm", 8, **SMALL, d_v=6).o_proj.weight.shape == (8, 6)


def test_query_norm_makes_the_scale_of_the_input_irrelevant():
    x = torch.randn(2, 4, 8)
    for norm, same in (("rms", True), ("none", False)):
        mixer = create_mixer("pkm", 8, **SMALL, query_norm=norm)
        assert torch.allclose(mixer(10 * x)[0], mixer(1000 * x)[0], atol=1e-4) == same


def test_its_values_are_a_group_of_their_own():
    mixer = create_mixer("pkm", 8, **SMALL, value_learning_rate_scale=3.0)
    (group,) = mixer.parameter_groups()
    assert not group["sparse_gradient"]
    assert group["params"][0] is mixer.values and len(group["params"]) == 1
    assert (group["learning_rate_scale"], group["weight_decay"]) == (3.0, 0.0)
    assert create_mixer("fwpkm", 8, n_subkeys=4, d_k=4, d_v=4, top_k=2, chunk_size=4).parameter_groups() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_k": 7}, "needs an even d_k"),
        ({"d_v": 0}, "d_v must be a whole number of at least 1, or None, got 0"),
        ({"top_k": 6}, r"top_k must be in 1\.\.n_subkeys, got 6 and n_subkeys 5"),
        ({"score": "cosine"}, "score must be one of idw, dot"),
        ({"query_norm": "batch"}, "query_norm must be one of rms, none, got 'batch'"),
        ({"value_learning_rate_scale": 0.0}, "value_learning_rate_scale must be a finite number above 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("pkm", 8, **{**SMALL, **options})
