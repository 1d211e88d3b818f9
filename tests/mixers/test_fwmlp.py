"""The fast-weight MLP against a module that an optimizer trains, its fast form against the definition, its states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.mixers import MixerState, check_mixer, create_mixer
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.ops.fwmlp import FwmlpState, finish, fwmlp
from torch import nn

BACKENDS = ("chunked", "reference")
SMALL = {"d_k": 8, "d_v": 6, "d_hidden": 10, "chunk_size": 8}


def problem(seed=0, batch=2, time=30, d_k=4, d_v=3, d_hidden=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tokens = [draw(batch, time, d_k), draw(batch, time, d_v), draw(batch, time).sigmoid()]
    weights = [draw(d_hidden, d_k), draw(d_hidden), draw(d_hidden, d_k), draw(d_hidden), draw(d_v, d_hidden), draw(d_v)]
    return tokens, [0.25 * w for w in weights]  # tame: steps that diverge magnify rounding


class Memory(nn.Module):
    """The MLP as anybody would write it."""

    def __init__(self, weights):
        super().__init__()
        self.up, self.gate, self.down = (nn.Linear(w.shape[1], w.shape[0]).double() for w in weights[::2])
        with torch.no_grad():
            for parameter, weight in zip(self.parameters(), weights, strict=True):
                parameter.copy_(weight)

    def forward(self, x):
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_an_mlp_trained_by_plain_gradient_descent(backend, lookahead, gated, oracle):
    (queries, targets, gates), weights = problem(time=28)
    options = {"chunk_size": 8, "lookahead": lookahead, "learning_rate": 0.5, "backend": backend}
    output = fwmlp(queries, targets, gates if gated else None, weights, **options, return_state=True)
    for b in range(2):
        memory = Memory(weights)
        optimizer = torch.optim.SGD(memory.parameters(), lr=0.5)
        for start in range(0, 28, 8):
            stop = min(start + 8, 28)
            read = memory(queries[b, start:stop])
            oracle("fwmlp", "torch.optim.SGD on a module", output.retrieved[b, start:stop], read, limit=1e-9)
            if stop - start < 8:
                break
            # the pairs whose targets arrive in this chunk
            first, last = max(0, start - lookahead), stop - lookahead
            error = memory(queries[b, first:last]) - targets[b, first + lookahead : stop]
            loss = (error.square().mean(-1) * (gates[b, first:last] if gated else 1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for found, expected in zip(output.state.weights, memory.parameters(), strict=True):
            oracle("fwmlp", "torch.optim.SGD on a module, weights", found[b], expected, limit=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    time=st.integers(1, 30),
    chunk_size=st.integers(1, 12),
    lookahead=st.integers(0, 11),
    learning_rate=st.sampled_from([0.05, 0.1]),
)
def test_batched_products_equal_definition(seed, batch, time, chunk_size, lookahead, learning_rate):
    tokens, weights = problem(seed, batch, time)
    inputs = [t.requires_grad_() for t in (*tokens, *weights)]
    options = {"chunk_size": chunk_size, "lookahead": min(lookahead, chunk_size - 1), "learning_rate": learning_rate}
    results = []
    for backend in BACKENDS:
        output = fwmlp(*tokens, weights, **options, return_state=True, backend=backend)
        state = finish(output.state, weights, **options, backend=backend)
        parts = (output.retrieved, *(state.weights or ()))
        gradients = torch.autograd.grad(sum(p.sin().sum() for p in parts), inputs, materialize_grads=True)
        results.append((*parts, *gradients))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_exact_through_the_steps(backend):
    """Finite differences of what is read and of the final weights, over two rewrites."""
    tokens, weights = problem(seed=2, batch=1, time=7, d_k=2, d_v=2, d_hidden=3)
    options = {"chunk_size": 3, "learning_rate": 0.7, "backend": backend}

    def run(*tensors):
        output = fwmlp(*tensors[:3], tensors[3:], **options, return_state=True)
        return output.retrieved, *output.state.weights

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (*tokens, *weights)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_cut_gives_the_uncut_result(backend):
    options = {"chunk_size": 8, "lookahead": 2, "learning_rate": 0.5, "backend": backend}
    tokens, weights = problem(time=45)
    whole = fwmlp(*tokens, weights, **options, return_state=True)
    for cuts in ([1] * 45, [7, 1, 8, 13, 16], [40, 5], [8, 8, 8, 8, 8, 5]):
        state, parts = None, []
        for piece in zip(*(t.split(cuts, dim=1) for t in tokens)):
            output = fwmlp(*piece, weights, **options, state=state, return_state=True)
            state = output.state
            parts.append(output.retrieved)
        torch.testing.assert_close(torch.cat(parts, 1), whole.retrieved, rtol=1e-10, atol=1e-12)
        for found, expected in zip(state.weights, whole.state.weights, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradients_flow_through_a_cut_as_if_there_was_none():
    options = {"chunk_size": 8, "learning_rate": 0.5}
    tokens, weights = problem(time=30)
    inputs = [t.requires_grad_() for t in (*tokens, *weights)]
    whole = torch.autograd.grad(fwmlp(*tokens, weights, **options).retrieved.square().sum(), inputs)
    first = fwmlp(*(t[:, :19] for t in tokens), weights, **options, return_state=True)
    second = fwmlp(*(t[:, 19:] for t in tokens), weights, **options, state=first.state)
    cut = torch.autograd.grad(first.retrieved.square().sum() + second.retrieved.square().sum(), inputs)
    for found, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_sequence_has_no_weights_of_its_own_until_its_first_rewrite():
    mixer = create_mixer("fwmlp", 16, **SMALL)
    x = torch.randn(2, 24, 16)
    with torch.no_grad():
        states = {time: mixer(x[:, :time], None, True)[1] for time in (1, 7, 8, 9, 24)}
    assert [state.weights is None for state in states.values()] == [True, True, False, False, False]
    weights = 2 * 4 * (10 * 8 + 10 + 10 * 8 + 10 + 6 * 10 + 6)
    token = 2 * 4 * (8 + 6 + 1)  # of which one waits for its target when a chunk is complete
    assert [state.nbytes for state in states.values()] == [token, 7 * token, *(weights + n * token for n in (1, 2, 1))]
    assert states[24].nbytes < mixer.max_state_nbytes(2)


def test_between_rewrites_the_weights_are_handed_on():
    options = {"chunk_size": 8}
    tokens, weights = problem(batch=1, time=24)
    state = fwmlp(*(t[:, :17] for t in tokens), weights, **options, return_state=True).state
    for t in range(17, 24):
        after = fwmlp(*(x[:, t : t + 1] for x in tokens), weights, **options, state=state, return_state=True).state
        assert (after.weights is state.weights) == (t != 23)
        state = after


def test_selecting_rows_selects_their_weights(tmp_path):
    options = {"chunk_size": 8, "learning_rate": 0.5}
    tokens, weights = problem(batch=3, time=40)
    state = fwmlp(*(t[:, :21] for t in tokens), weights, **options, return_state=True).state
    state.save(tmp_path / "state.safetensors")
    rows = [2, 0, 2]
    picked = MixerState.load(tmp_path / "state.safetensors").select(rows)
    found = fwmlp(*(t[rows, 21:] for t in tokens), weights, **options, state=picked).retrieved
    whole = fwmlp(*tokens, weights, **options).retrieved
    torch.testing.assert_close(found, whole[rows][:, 21:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_changes_nothing_it_was_given(backend):
    options = {"chunk_size": 8, "backend": backend}
    tokens, weights = problem(time=20)
    before = [t.clone() for t in (*tokens, *weights)]
    state = fwmlp(*tokens, weights, **options, return_state=True).state
    kept = state.clone()
    first = fwmlp(*tokens, weights, **options, state=state).retrieved
    assert fwmlp(*tokens, weights, **options, state=state).retrieved.equal(first)
    assert fwmlp(*tokens, weights, **options, state=kept).retrieved.equal(first)
    assert all(t.equal(b) for t, b in zip((*tokens, *weights), before, strict=True))


def test_low_precision_inputs_keep_float32_weights():
    tokens, weights = problem(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = fwmlp(*tokens, weights, chunk_size=8, return_state=True)
    assert output.retrieved.dtype == torch.float32 and {w.dtype for w in output.state.weights} == {torch.float32}


def test_backend_is_recorded():
    tokens, weights = problem()
    with record_backends() as record:
        fwmlp(*tokens, weights, chunk_size=8)
    assert record == {"fwmlp": {"chunked"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lookahead": 8}, "lookahead must be at least 0 and less than chunk_size, got 8 and 8"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"learning_rate": -0.1}, "learning_rate must not be negative, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must not be negative, got nan"),
        ({"backend": "cuda"}, "has no backend 'cuda'"),
    ],
)
def test_unfit_options_are_refused(change, message):
    tokens, weights = problem()
    with pytest.raises(ValueError, match=message):
        fwmlp(*tokens, weights, **{"chunk_size": 8} | change)


def test_unfit_sizes_are_refused():
    (queries, targets, gates), weights = problem()
    with pytest.raises(ValueError, match=r"need targets \[2, 30, d_v\] and gates \[2, 30\], got \[2, 29, 3\]"):
        fwmlp(queries, targets[:, 1:], gates, weights, chunk_size=8)
    with pytest.raises(ValueError, match=r"and gates \[2, 30\], got .* and \[1, 30\]"):
        fwmlp(queries, targets, gates[:1], weights, chunk_size=8)
    with pytest.raises(ValueError, match=r"d_k 3, d_hidden 5 and d_v 3 need weights of shapes .* got \[\(5, 4\)"):
        fwmlp(queries[..., :3], targets, gates, weights, chunk_size=8)
    with pytest.raises(ValueError, match="six weights"):
        fwmlp(queries, targets, gates, weights[:5], chunk_size=8)
    with pytest.raises(ValueError, match="at least one token"):
        fwmlp(queries[:, :0], targets[:, :0], gates[:, :0], weights, chunk_size=8)


def test_a_foreign_state_is_refused():
    tokens, weights = problem()
    state = fwmlp(*tokens, weights, chunk_size=8, return_state=True).state
    assert isinstance(state, FwmlpState)
    with pytest.raises(ValueError, match=r"read with chunk_size=8; it cannot be continued with chunk_size=16"):
        fwmlp(*tokens, weights, chunk_size=16, state=state)
    with pytest.raises(ValueError, match="holds 2 sequences but queries has 1"):
        fwmlp(*(t[:1] for t in tokens), weights, chunk_size=8, state=state)
    other_tokens, others = problem(d_hidden=7)
    with pytest.raises(ValueError, match="or another d_hidden"):
        fwmlp(*other_tokens, others, chunk_size=8, state=state)
    with pytest.raises(ValueError, match="expects an FwmlpState, got dict"):
        fwmlp(*tokens, weights, chunk_size=8, state={})


def test_contract_of_other_options():
    options = {"chunk_size": 7, "lookahead": 3, "gated_loss": False, "learning_rate": 3.0}
    check_mixer("fwmlp", options=options, only=range(1, 11))


def test_it_differs_from_fwpkm_in_the_memory_only():
    """Same projections, by name and shape; and what it is, of what the op retrieves."""
    mixer = create_mixer("fwmlp", 16, **SMALL)
    sparse = create_mixer("fwpkm", 16, d_k=8, d_v=6, n_subkeys=4, top_k=2, chunk_size=8)
    own, theirs = ({n: p.shape for n, p in m.named_parameters()} for m in (mixer, sparse))
    assert {n: s for n, s in own.items() if not n.startswith("memory_")} == {
        n: s for n, s in theirs.items() if n not in ("keys", "values")
    }
    x = torch.randn(2, 21, 16)
    targets = mixer.v_proj(mixer.v_norm(x))
    targets = (targets - targets.mean(-1, keepdim=True)) / (targets.std(-1, keepdim=True) + 1e-6)
    gates = mixer.gate_proj(mixer.gate_norm(x)).sigmoid()
    read = fwmlp(mixer.q_proj(mixer.q_norm(x)), targets, gates[..., 0], mixer.initial_weights(), chunk_size=8).retrieved
    expected = mixer.o_proj(mixer.o_norm(gates * read + (1 - gates) * targets))
    torch.testing.assert_close(mixer(x)[0], expected)


def test_the_gates_weight_the_loss_if_asked_to():
    mixer = create_mixer("fwmlp", 16, **SMALL)
    plain = create_mixer("fwmlp", 16, **SMALL, gated_loss=False)
    plain.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 8, 16)
    steps = []
    for m in (mixer, plain):
        with torch.no_grad():
            m.gate_proj.weight.zero_()  # all gates one half
            m.gate_proj.bias.zero_()
        state = m(x, None, True)[1]
        steps.append(torch.cat([(a[0] - b).flatten() for a, b in zip(state.weights, m.initial_weights())]))
    torch.testing.assert_close(steps[0], 0.5 * steps[1], rtol=1e-3, atol=1e-6)


def test_finishing_a_text_writes_its_last_chunk():
    mixer = create_mixer("fwmlp", 16, **SMALL)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        _, state = mixer(x, None, True)
        done = mixer.finish(state)
        assert state.weights is None and done.weights is not None and done.position == 0
        assert not torch.allclose(mixer(x, done)[0], mixer(x)[0])
        _, one = mixer(x[:, :1], None, True)
        assert mixer.finish(one).weights is None  # its target never came
        assert mixer.finish(done).weights is done.weights
    with pytest.raises(ValueError, match="cannot be continued by"):
        create_mixer("fwmlp", 16, **{**SMALL, "chunk_size": 4}).finish(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_v": 1}, "d_v must be a whole number of at least 2"),
        ({"d_hidden": 0}, "d_hidden must be a whole number of at least 1, got 0"),
        ({"lookahead": 8}, "less than chunk_size, got 8 and 8"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number of at least 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("fwmlp", 16, **{**SMALL, **options})
