"""Ridge-regression memories against their definition, a least-squares solver, and released code."""

from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.contract.trial import relative_error
from mixerzoo.mixers.ops.ridge_regression import ridge_regression
from safetensors.torch import load_file
from torch.nn import functional as F

GOLDEN = Path(__file__).parents[2] / "golden" / "gated_kalmanet.safetensors"
GATES = ("log_decay", "beta", "mix")


def arguments(batch=2, time=29, heads=2, d_k=6, d_v=5, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    tensors = {name: F.normalize(normal(batch, time, heads, d_k), dim=-1) for name in ("queries", "keys")}
    tensors["values"] = normal(batch, time, heads, d_v)
    tensors["log_decay"] = F.logsigmoid(normal(batch, time, heads) + 2)
    tensors |= {name: normal(batch, time, heads).sigmoid() for name in ("beta", "mix")}
    tensors["ridge"] = normal(heads, d_k).exp()
    return {name: x.requires_grad_() for name, x in tensors.items()}


def run(tensors, cuts=None, **options):
    """Output and state of a sequence, cut into calls of the given lengths that carry the state."""
    options = {"chunk_size": 8, "ridge": tensors["ridge"], **options}
    state, outputs, first = None, [], 0
    for length in cuts or [tensors["values"].shape[1]]:
        piece = {name: x[:, first : first + length] for name, x in tensors.items() if name != "ridge"}
        output, state = ridge_regression(**piece, **options, state=state, return_state=True)
        outputs.append(output)
        first += length
    return [torch.cat(outputs, dim=1), state.gram, state.memory]


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), list(tensors.values()), materialize_grads=True)


def assert_equal(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


SOLVERS = [{}, {"solver": "chebyshev"}, {"solver": "chebyshev", "ridge": 0.02}, {"ridge": 0.1}]


@pytest.mark.parametrize("time", [1, 8, 29])
@pytest.mark.parametrize("options", SOLVERS)
def test_chunks_agree_with_the_definition_and_its_gradients(options, time):
    tensors = arguments(time=time)
    expected, actual = (run(tensors, backend=backend, **options) for backend in ("reference", "chunked"))
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("options", SOLVERS)
def test_any_cut_gives_the_same(options):
    tensors = arguments()
    whole = run(tensors, **options)
    for cuts in ([1] * 29, [2, 3, 5, 7, 11, 1], [8, 16, 5]):
        assert_equal(run(tensors, cuts, **options), whole)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_it_predicts_as_weighted_least_squares_does(oracle, backend):
    """The last token's output against LAPACK's least squares over all tokens, penalty rows included."""
    tensors = {name: x.detach() for name, x in arguments(batch=1, heads=1).items()}
    keys, values, gates = (tensors[name][0, :, 0] for name in ("keys", "values", "log_decay"))
    left = (gates.sum() - gates.cumsum(0)).exp() * tensors["beta"][0, :, 0]
    penalty = tensors["ridge"][0].sqrt().diag()
    rows = torch.cat([left.sqrt()[:, None] * keys, penalty])
    targets = torch.cat([left.sqrt()[:, None] * values, torch.zeros(len(penalty), values.shape[1], dtype=values.dtype)])
    mapping = torch.linalg.lstsq(rows, targets, driver="gelsd").solution
    output, _ = ridge_regression(**{**tensors, "mix": None}, backend=backend)
    oracle("mesa", "torch.linalg.lstsq", output[0, -1, 0], tensors["queries"][0, -1, 0] @ mapping, limit=1e-9)


def test_fla(oracle):
    from fla.ops.mesa_net.naive import naive_mesa_net_decoding_one_step, naive_mesa_net_exact

    tensors = {name: x.detach().float() for name, x in arguments(time=24).items()}
    names = {"queries": "q", "keys": "k", "values": "v", "log_decay": "g", "beta": "beta", "ridge": "lamb"}
    tensors["values"] = F.pad(tensors["values"], (0, 1))  # theirs has one size for keys and values
    given = {theirs: tensors[ours] for ours, theirs in names.items()}
    expected, gram, memory = naive_mesa_net_exact(**given)
    output, state = ridge_regression(**{**tensors, "mix": None}, chunk_size=8, return_state=True)
    oracle("mesa", "fla-core naive_mesa_net_exact", output, expected, limit=1e-5)
    oracle(
        "mesa", "fla-core naive_mesa_net_exact, state", torch.cat([state.gram, state.memory]), torch.cat([gram, memory])
    )
    token = {name: x if name == "lamb" else x[:, -1] for name, x in given.items()}
    stepped, *_ = naive_mesa_net_decoding_one_step(**token, prev_h_kk=gram, prev_h_kv=memory)
    one = {name: x if name == "ridge" else x[:, -1:] for name, x in tensors.items()}
    ours, _ = ridge_regression(**{**one, "mix": None}, state=state)
    # theirs adds 1e-5 to its denominators
    oracle("mesa", "fla-core naive_mesa_net_decoding_one_step", ours[:, 0], stepped, limit=1e-3)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_released_gated_kalmanet(oracle, backend):
    """What the released kernel for decoding gives token by token, in float32."""
    golden = {name: x.double() for name, x in load_file(GOLDEN).items()}
    given = {name: golden[name] for name in ("queries", "keys", "values", "log_decay", "mix")}
    options = {"beta": torch.ones_like(given["mix"]), "ridge": 0.02, "solver": "chebyshev", "steps": 30}
    output, state = ridge_regression(**given, **options, chunk_size=8, return_state=True, backend=backend)
    oracle("gated_kalmanet", "golden file of the released kernel", output, golden["output"], limit=1e-5)
    oracle("gated_kalmanet", "golden file of the released kernel, state", state.gram, golden["final_gram"])


def test_solvers_find_the_same_solution():
    tensors = {name: x.detach() for name, x in arguments().items()}
    exact = run(tensors, backend="reference", ridge=0.02)[0]
    assert relative_error(run(tensors, ridge=0.02)[0], exact) < 1e-12
    errors = [relative_error(run(tensors, ridge=0.02, solver="chebyshev", steps=n)[0], exact) for n in (10, 30, 100)]
    assert 1e-5 < errors[0] < 1e-1 and errors[1] < errors[0] / 30 and errors[2] < 1e-10


@pytest.mark.parametrize("options", SOLVERS[:3])
def test_gradcheck(options):
    tensors = arguments(batch=1, time=5, heads=1, d_k=3, d_v=2)

    def function(*values):
        found = dict(zip(tensors, values, strict=True))
        return run(found, chunk_size=2, **({"ridge": found["ridge"]} | options))

    assert torch.autograd.gradcheck(function, list(tensors.values()))


@pytest.mark.parametrize("options", SOLVERS)
def test_hostile_gates_stay_finite(options):
    """Decays that leave nothing, keys of zero, the same key over and over, writes of zero."""
    tensors = {name: x.detach().float() for name, x in arguments(time=40).items()}
    tensors["log_decay"][:, 5:9] = -1e4
    tensors["keys"][:, 12:30] = tensors["keys"][:, 12:13]
    tensors["keys"][0, 0] = tensors["keys"][1, 20:28] = 0
    tensors["beta"][:, 30:33] = 0
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    results = run(tensors, **options)
    found = gradients(results[:1], tensors)
    assert all(x.isfinite().all() for x in (*results, *found))
    exact = run({name: x.double() for name, x in tensors.items()}, backend="reference", **options)[0]
    assert relative_error(results[0], exact) < 1e-4


def test_low_precision_keeps_a_float32_state():
    tensors = {name: x.detach().to(torch.bfloat16) for name, x in arguments().items()}
    with torch.autocast("cpu", torch.bfloat16):
        output, *state = run(tensors)
    exact, *_ = run({name: x.double() for name, x in tensors.items()})
    assert output.dtype == torch.bfloat16 and {s.dtype for s in state} == {torch.float32}
    assert relative_error(output, exact) < 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.zeros(2, 29, 2, 7)}, r"queries must have the shape of keys, \[2, 29, 2, 6\]"),
        ({"values": torch.zeros(2, 28, 2, 5)}, r"values must be \[2, 29, 2\] \+ \[d_v\]"),
        ({"mix": torch.zeros(2, 29)}, r"mix must be \[2, 29, 2\]"),
        ({"ridge": torch.ones(2, 5)}, r"ridge must be \[heads, d_k\] = \[2, 6\] or a number, got \[2, 5\]"),
        ({"ridge": 0.0}, "ridge must be positive, got 0.0"),
        ({"solver": "guess"}, "solver must be one of conjugate_gradient, chebyshev, got 'guess'"),
        ({"steps": 0}, "steps and chunk_size must be at least 1, got 0 and 64"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ridge_regression(**{**arguments(), **changes})


def test_a_state_of_another_batch_is_refused():
    _, state = ridge_regression(**arguments(), return_state=True)
    with pytest.raises(ValueError, match=r"state.gram must be \[3, 2, 6, 6\], got \[2, 2, 6, 6\]"):
        ridge_regression(**arguments(batch=3), state=state)
