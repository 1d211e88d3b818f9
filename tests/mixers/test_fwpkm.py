"""FwPKM: released numbers, the compact op against the definition, states, gradients, and what must be refused."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.ops.fwpkm import OP, FwpkmState, finish, fwpkm, reference
from safetensors import safe_open

from .fwpkm_problems import CONFIGURATIONS, check_against_definition, memories, problem

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("fwpkm_*.safetensors"))
BACKENDS = tuple(OP.available())  # triton too, in an interpreter: see test_fwpkm_triton.py
OPTIONS = ("top_k", "chunk_size", "lookahead", "score", "learning_rate", "address_weight", "key_objective", "boundary")


def read_golden(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    return tensors, {name: metadata[name] for name in (*OPTIONS, "scope")}


def released_codebook_use(scores, top_k):
    """The released code computes this, and the entropies of it, in float32 whatever the precision of the rest."""
    best, index = scores.float().topk(top_k, dim=-1)
    kept = torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(-1, index, best)
    return kept.softmax(-1).mean((0, 1, 2))


def solve_golden(tensors, options, backend):
    inputs = [tensors[n].requires_grad_() for n in ("queries", "targets", "gates") if n in tensors]
    memory = tensors["keys"], tensors["values"]
    gates = tensors.get("gates")
    output = fwpkm(*inputs[:2], gates, *memory, **options, return_state=True, backend=backend)
    gradients = torch.autograd.grad((output.retrieved * tensors["cotangent"]).sum(), inputs)
    state = finish(output.state, *memory, **options, backend=backend)
    values = tensors["values"].index_put((state.slots,), state.rows.detach())
    found = {"retrieved": output.retrieved, "slots": output.slots, "weights": output.weights}
    found |= {f"grad_{n}": g for n, g in zip(("queries", "targets", "gates"), gradients)}
    return found | {"final_keys": state.keys[0], "final_values": values}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reference_matches_released_numbers_to_1e_8(path, monkeypatch, oracle):
    monkeypatch.setattr(reference, "codebook_use", released_codebook_use)
    tensors, options = read_golden(path)
    solved = solve_golden(tensors, options, "reference")
    for name, found in solved.items():
        torch.testing.assert_close(found, tensors[name], rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    for name, what in (("retrieved", ""), ("grad_targets", ", gradients"), ("final_values", ", values")):
        oracle("fwpkm", f"golden files of the released code{what}", solved[name], tensors[name], limit=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_backends_match_released_numbers(path, backend):
    """In float64 throughout; what the released float32 softmax loses is seen with dot-product scores only."""
    tensors, options = read_golden(path)
    tolerance = 2e-7 if options["score"] == "dot" else 1e-8
    for name, found in solve_golden(tensors, options, backend).items():
        torch.testing.assert_close(found, tensors[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=80, deadline=None)
@given(CONFIGURATIONS)
def test_any_configuration_equals_the_definition(configuration):
    check_against_definition("compact", configuration)


@pytest.mark.parametrize("boundary", ["carry", "drop"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_cut_gives_the_uncut_result(boundary, backend):
    options = {"top_k": 3, "chunk_size": 8, "lookahead": 2, "boundary": boundary, "backend": backend}
    *inputs, keys, values = problem(time=45)
    whole = fwpkm(*inputs, keys, values, **options, return_state=True)
    for cuts in ([1] * 45, [7, 1, 8, 13, 16], [40, 5], [8, 8, 8, 8, 8, 5]):
        state, parts = None, []
        for piece in zip(*(t.split(cuts, dim=1) for t in inputs)):
            output = fwpkm(*piece, keys, values, **options, state=state, return_state=True)
            state = output.state
            parts.append(output.retrieved)
        torch.testing.assert_close(torch.cat(parts, 1), whole.retrieved, rtol=1e-10, atol=1e-12)
        for found, expected in zip(memories(state, keys, values), memories(whole.state, keys, values)):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradients_flow_through_a_cut_as_if_there_was_none():
    options = {"top_k": 3, "chunk_size": 8}
    inputs = [t.requires_grad_() for t in problem(time=30)]
    tokens, memory = inputs[:3], inputs[3:]
    whole = torch.autograd.grad(fwpkm(*tokens, *memory, **options).retrieved.square().sum(), inputs)
    first = fwpkm(*(t[:, :19] for t in tokens), *memory, **options, return_state=True)
    second = fwpkm(*(t[:, 19:] for t in tokens), *memory, **options, state=first.state)
    cut = torch.autograd.grad(first.retrieved.square().sum() + second.retrieved.square().sum(), inputs)
    for found, expected in zip(cut, whole):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("score", ["idw", "dot"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_exact_through_the_key_step(score, backend):
    """Finite differences of the whole op, final memory included, second order through the keys."""
    inputs = [t.requires_grad_() for t in problem(seed=5, batch=1, time=9, heads=1, d_k=4, d_v=3, n_subkeys=4)]
    options = {"top_k": 2, "chunk_size": 3, "score": score, "address_weight": 5.0, "backend": backend}

    def run(*tensors):
        output = fwpkm(*tensors, **options, return_state=True)
        return (output.retrieved, *memories(output.state, *tensors[3:]))

    assert torch.autograd.gradcheck(run, inputs)
    unmoved = fwpkm(*inputs, **options | {"address_weight": 0.0})
    moved = fwpkm(*inputs, **options)
    assert not torch.allclose(unmoved.weights, moved.weights)  # the key step is really part of what was checked


def test_selecting_rows_selects_their_memories():
    options = {"top_k": 3, "chunk_size": 8}
    *inputs, keys, values = problem(batch=3, time=40)
    state = fwpkm(*(t[:, :21] for t in inputs), keys, values, **options, return_state=True).state
    rows = [2, 0, 2]
    picked = state.select(rows)
    found = fwpkm(*(t[rows, 21:] for t in inputs), keys, values, **options, state=picked, return_state=True)
    whole = fwpkm(*inputs, keys, values, **options, return_state=True)
    torch.testing.assert_close(found.retrieved, whole.retrieved[rows][:, 21:])
    table = memories(found.state, keys, values)[1].unflatten(0, (3, -1))
    torch.testing.assert_close(table, memories(whole.state, keys, values)[1].unflatten(0, (3, -1))[rows])


def test_selecting_rows_of_a_shared_memory_keeps_it():
    options = {"top_k": 3, "chunk_size": 8, "scope": "batch"}
    *inputs, keys, values = problem(batch=3, time=20)
    state = fwpkm(*inputs, keys, values, **options, return_state=True).state
    picked = state.select([1])
    assert picked.batch == 1 and picked.queries.values.shape[0] == 1
    assert picked.slots.equal(state.slots) and picked.rows.equal(state.rows) and picked.keys.equal(state.keys)


def test_state_holds_the_rows_it_wrote_and_no_table():
    mixer = create_mixer("fwpkm", 16, n_subkeys=64, d_k=8, d_v=16, chunk_size=8, top_k=2)
    x = torch.randn(2, 64, 16)
    with torch.no_grad():
        sizes = [mixer(x[:, :time], None, True)[1].nbytes for time in (1, 7, 8, 32, 64)]
        _, state = mixer(x, None, True)
    assert sizes == sorted(sizes) and sizes[1] < sizes[2] < sizes[3]
    assert len(state.rows) <= 2 * 64 * 2  # two accesses a token
    assert state.nbytes < mixer.values.nbytes / 2


def test_a_token_between_rewrites_costs_one_retrieval():
    """Nothing is rewritten, and neither keys nor rows are copied, until the chunk is full."""
    options = {"top_k": 3, "chunk_size": 8}
    *inputs, keys, values = problem(batch=1, time=24)
    state = fwpkm(*(t[:, :17] for t in inputs), keys, values, **options, return_state=True).state
    for t in range(17, 24):
        token = [x[:, t : t + 1] for x in inputs]
        after = fwpkm(*token, keys, values, **options, state=state, return_state=True).state
        assert (after.log is state.log and after.keys is state.keys) == (t != 23)
        state = after


def test_a_call_changes_nothing_it_was_given():
    options = {"top_k": 3, "chunk_size": 8}
    *inputs, keys, values = problem(time=20)
    before = [t.clone() for t in (*inputs, keys, values)]
    state = fwpkm(*inputs, keys, values, **options, return_state=True).state
    kept = state.clone()
    first = fwpkm(*inputs, keys, values, **options, state=state).retrieved
    assert fwpkm(*inputs, keys, values, **options, state=state).retrieved.equal(first)
    assert fwpkm(*inputs, keys, values, **options, state=kept).retrieved.equal(first)
    assert all(t.equal(b) for t, b in zip((*inputs, keys, values), before))


def test_equal_scores_and_repeated_queries_stay_finite():
    queries, targets, gates, keys, values = problem(time=40)
    queries, keys = torch.ones_like(queries).requires_grad_(), torch.zeros_like(keys)
    for score in ("idw", "dot"):
        output = fwpkm(queries, targets, gates, keys, values, top_k=4, chunk_size=8, score=score)
        (gradient,) = torch.autograd.grad(output.retrieved.square().sum(), queries)
        assert output.retrieved.isfinite().all() and gradient.isfinite().all()
        torch.testing.assert_close(output.weights, torch.full_like(output.weights, 1 / 8))


def test_low_precision_inputs_keep_a_float32_memory():
    inputs = problem(dtype=torch.bfloat16)
    output = fwpkm(*inputs, top_k=3, chunk_size=8, return_state=True)
    assert output.state.rows.dtype == output.state.keys.dtype == output.retrieved.dtype == torch.float32


def test_backend_is_recorded():
    with record_backends() as record:
        fwpkm(*problem(), top_k=3, chunk_size=8)
    assert record == {"fwpkm": {"compact"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 9}, "top_k must not exceed n_subkeys, got 9 and 8"),
        ({"lookahead": 8}, "lookahead must be at least 0 and less than chunk_size, got 8 and 8"),
        ({"score": "cosine"}, "score must be one of idw, dot"),
        ({"boundary": "keep"}, "boundary must be one of carry, drop"),
        ({"scope": "world"}, "scope must be one of sequence, batch"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"backend": "cuda"}, "has no backend 'cuda'"),
    ],
)
def test_unfit_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fwpkm(*problem(), **{"top_k": 3, "chunk_size": 8} | change)


def test_unfit_sizes_are_refused():
    queries, targets, gates, keys, values = problem()
    options = {"top_k": 3, "chunk_size": 8}
    with pytest.raises(ValueError, match=r"need keys of shape \[2, 2, n_subkeys, 3\]"):
        fwpkm(queries[..., :6], targets, gates, keys, values, **options)
    with pytest.raises(ValueError, match="8 sub-keys address 64 slots, but values has 63 rows"):
        fwpkm(queries, targets, gates, keys, values[:63], **options)
    with pytest.raises(ValueError, match=r"targets must have shape \[2, 50, 6\], got \[2, 49, 6\]"):
        fwpkm(queries, targets[:, 1:], gates, keys, values, **options)
    with pytest.raises(ValueError, match=r"gates must have shape \[2, 50\]"):
        fwpkm(queries, targets, gates[:1], keys, values, **options)
    with pytest.raises(ValueError, match="at least one token"):
        fwpkm(queries[:, :0], targets[:, :0], gates[:, :0], keys, values, **options)


def test_a_foreign_state_is_refused():
    *inputs, keys, values = problem()
    options = {"top_k": 3, "chunk_size": 8}
    state = fwpkm(*inputs, keys, values, **options, return_state=True).state
    assert isinstance(state, FwpkmState)
    with pytest.raises(ValueError, match="read with chunk_size=8; it cannot be continued with chunk_size=16"):
        fwpkm(*inputs, keys, values, **options | {"chunk_size": 16}, state=state)
    with pytest.raises(ValueError, match="holds 2 sequences but queries has 1"):
        fwpkm(*(t[:1] for t in inputs), keys, values, **options, state=state)
    other = problem(n_subkeys=9)[3:]
    with pytest.raises(ValueError, match="the state belongs to keys of shape"):
        fwpkm(*inputs, *other, **options, state=state)
    with pytest.raises(ValueError, match="expects an FwpkmState, got dict"):
        fwpkm(*inputs, keys, values, **options, state={})


@pytest.mark.parametrize("initial_memory", ["random", "zero", "learned"])
def test_initial_memory(initial_memory):
    mixer = create_mixer("fwpkm", 8, n_subkeys=4, d_k=4, d_v=6, top_k=2, chunk_size=4, initial_memory=initial_memory)
    assert ("values" in dict(mixer.named_parameters())) == (initial_memory == "learned")
    assert bool((mixer.values == 0).all()) == (initial_memory == "zero")
    x = torch.randn(1, 9, 8)
    mixer(x)[0].sum().backward()
    assert initial_memory != "learned" or mixer.values.grad.abs().sum() > 0
    copy = create_mixer("fwpkm", 8, n_subkeys=4, d_k=4, d_v=6, top_k=2, chunk_size=4, initial_memory=initial_memory)
    copy.load_state_dict(mixer.state_dict())
    assert copy(x)[0].equal(mixer(x)[0])


def test_finishing_a_text_writes_its_last_chunk():
    mixer = create_mixer("fwpkm", 8, n_subkeys=4, d_k=4, d_v=6, top_k=2, chunk_size=8)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        _, state = mixer(x, None, True)
        done = mixer.finish(state)
        assert len(state.slots) == 0 and len(done.slots) > 0 and done.position == 0
        assert not torch.allclose(mixer(x, done)[0], mixer(x)[0])
    with pytest.raises(ValueError, match="cannot be continued with chunk_size=4"):
        create_mixer("fwpkm", 8, n_subkeys=4, d_k=4, d_v=6, top_k=2, chunk_size=4).finish(state)


def test_the_log_of_a_long_text_stays_short():
    """Rewrites add runs and merge short ones; together they hold each slot at most twice, and say the same as one."""
    options = {"top_k": 2, "chunk_size": 4}
    *inputs, keys, values = problem(batch=2, time=200, n_subkeys=16)
    state = None
    for piece in zip(*(t.split(4, dim=1) for t in inputs)):
        state = fwpkm(*piece, keys, values, **options, state=state, return_state=True).state
        lengths = [len(slots) for slots, _ in state.log]
        assert all(older >= 2 * newer for older, newer in itertools.pairwise(lengths))
        assert sum(lengths) <= 2 * len(state.slots)
    assert len(lengths) > 1  # one run would prove nothing
    whole = fwpkm(*inputs, keys, values, **options, return_state=True).state
    assert state.slots.equal(whole.slots)
    torch.testing.assert_close(state.rows, whole.rows)
