"""Test-time training with a linear model and an MLP against released numbers, its definition, and fla."""

import itertools
from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.ops.ttt import chunked, ttt
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden"
SEQUENCE = ("queries", "keys", "values", "step_sizes")
PARAMETERS = ("position_scale", "norm_weight", "norm_bias")
BACKENDS = ("chunked", "reference")
MODELS = ("linear", "mlp")


WIDTHS = {"linear": [], "mlp": [6], "deep": [3, 5]}


def arguments(model="linear", batch=2, time=29, heads=2, d_head=4, mini_batch_size=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    tensors = {name: normal(batch, time, heads, d_head) for name in SEQUENCE[:3]}
    tensors["step_sizes"] = normal(batch, time, heads).sigmoid() / d_head
    tensors["position_scale"] = 1 / torch.arange(1, mini_batch_size + 1).to(dtype)
    tensors["norm_weight"] = 1 + 0.2 * normal(heads, d_head)
    tensors["norm_bias"] = 0.2 * normal(heads, d_head)
    widths = [d_head, *WIDTHS[model], d_head]
    for i, (d_in, d_out) in enumerate(itertools.pairwise(widths), start=1):
        tensors[f"W{i}"], tensors[f"b{i}"] = normal(heads, d_in, d_out), normal(heads, 1, d_out)
    return {name: x.requires_grad_() for name, x in tensors.items()}


def given(tensors):
    """The arguments of the op: the inner model's weights layer by layer."""
    layers = tuple((tensors[f"W{i}"], tensors[f"b{i}"]) for i in (1, 2, 3) if f"W{i}" in tensors)
    return {name: tensors[name] for name in (*SEQUENCE, *PARAMETERS)} | {"weights": layers}


def run(tensors, cuts=None, **options):
    """Output and state tensors of a sequence, cut into calls of the given lengths that carry the state."""
    everything = given(tensors)
    state, outputs, first = None, [], 0
    for length in cuts or [tensors["values"].shape[1]]:
        piece = {name: tensors[name][:, first : first + length] for name in SEQUENCE}
        output, state = ttt(**everything | piece, state=state, return_state=True, **options)
        outputs.append(output)
        first += length
    assert state.position == tensors["values"].shape[1] == first
    held = [w for layers in (state.weights, state.gathered) for layer in layers for w in layer]
    return [torch.cat(outputs, dim=1), *held]


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), list(tensors.values()))


def assert_equal(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_released_numbers(oracle, model, backend):
    golden = load_file(GOLDEN / f"ttt_{model}.safetensors")
    names = [n for n in ("W1", "b1", "W2", "b2") if n in golden]
    tensors = {n: golden[n].requires_grad_() for n in (*SEQUENCE, *PARAMETERS, *names)}
    output, *held = run(tensors, backend=backend)
    found = torch.autograd.grad((output * golden["cotangent"]).sum(), [tensors[n] for n in SEQUENCE[:3]])
    mixer, source = f"ttt_{model}", "golden file of the released code"
    oracle(mixer, source, output, golden["output"], limit=1e-8)
    for n, gradient in zip(SEQUENCE[:3], found):
        oracle(mixer, f"{source}, gradients", gradient, golden[f"grad_{n}"], limit=1e-8)
    for n, weight in zip(names, held):
        oracle(mixer, f"{source}, weights", weight, golden[f"final_{n}"], limit=1e-8)
    assert not any(w.any() for w in held[len(names) :])  # 64 tokens are four complete mini-batches


def test_fla(oracle):
    """The fast weights of fla, where every token has the same step size; what it reads with them differs from the
    paper, `z + LayerNorm(z)` without the query."""
    from fla.ops.ttt.naive import chunk_ttt_linear_ref

    tensors = {name: x.detach().float() for name, x in arguments(time=32, mini_batch_size=8).items()}
    tensors["step_sizes"].fill_(0.1)
    tensors["position_scale"].fill_(1.0)
    _, W, b = chunk_ttt_linear_ref(
        tensors["queries"].clone(),
        tensors["keys"],
        tensors["values"],
        tensors["norm_weight"],
        tensors["norm_bias"],
        eta=0.1,
        mini_batch_size=8,
        initial_state=tensors["W1"].expand(2, -1, -1, -1),
        initial_state_bias=tensors["b1"].expand(2, -1, -1, -1),
        output_final_state=True,
    )
    _, W1, b1, *_ = run(tensors)
    oracle("ttt_linear", "fla-core chunk_ttt_linear_ref, weights", W1, W, limit=1e-4)
    oracle("ttt_linear", "fla-core chunk_ttt_linear_ref, biases", b1, b, limit=1e-4)


@pytest.mark.parametrize("time", [1, 7, 8, 9, 29, 64])
@pytest.mark.parametrize("model", WIDTHS)
def test_dual_form_agrees_with_the_definition(model, time):
    tensors = arguments(model, time=time)
    expected, actual = run(tensors, backend="reference"), run(tensors, backend="chunked")
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors), tolerance=1e-8)


@pytest.mark.parametrize("model", WIDTHS)
def test_groups_of_mini_batches_agree_with_the_definition(model, monkeypatch):
    """More than are worked on together: in training each group is computed again in the backward pass."""
    monkeypatch.setitem(chunked.GROUP_BYTES, "cpu", 1)
    tensors = arguments(model, time=71, mini_batch_size=2)
    expected, actual = run(tensors, backend="reference"), run(tensors, cuts=[1, 70], backend="chunked")
    assert_equal(actual, expected, tolerance=1e-8)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors), tolerance=1e-7)
    with torch.no_grad():
        assert_equal(run(tensors, backend="chunked"), expected, tolerance=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_a_longer_call_keeps_no_weights_of_its_mini_batches(model, monkeypatch):
    """What a training call saves for each mini-batch, beside a few numbers for each token of it."""

    def saved(time):
        kept = {}  # by storage: views save nothing

        def pack(x):
            kept[x.untyped_storage().data_ptr()] = x
            return x

        tensors = {n: x.detach() for n, x in arguments(model, 1, time, 1, 16, 2, torch.float32).items()}
        leaf = tensors["W1"].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output, _ = ttt(**given(tensors))
        assert output.requires_grad and leaf.requires_grad
        return sum(x.untyped_storage().nbytes() for x in kept.values())

    numbers = 16 * 16 if model == "linear" else 2 * 16 * WIDTHS["mlp"][0]
    assert (saved(64) - saved(32)) / 16 > 4 * numbers  # one group keeps them all
    monkeypatch.setitem(chunked.GROUP_BYTES, "cpu", 1)
    assert (saved(160) - saved(96)) / 32 < 3 * numbers


def test_backward_inside_autocast():
    """There torch lowers the products of its own derivatives, but the steps of the weights are exact."""
    tensors = {name: x.detach().float().requires_grad_() for name, x in arguments("mlp").items()}
    expected = gradients(run(tensors), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(run(tensors), tensors)
    assert all((f - e).norm() < 0.02 * e.norm() for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("cuts", [[1] * 29, [2, 3, 5, 7, 11, 1], [8, 16, 5], [7, 1, 8, 13], [9, 20], [3, 2, 24]])
@pytest.mark.parametrize("model", MODELS)
def test_any_cut_gives_the_same(model, cuts):
    tensors = arguments(model)
    whole, cut = run(tensors), run(tensors, cuts)
    assert_equal(cut, whole)
    assert_equal(gradients(cut, tensors), gradients(whole, tensors), tolerance=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inner_gradient_is_the_gradient_of_the_inner_loss(backend):
    """One token with step size s moves every weight by -s times what autograd finds for the loss of the paper."""
    tensors = {name: x.detach() for name, x in arguments("mlp", batch=1, time=1, mini_batch_size=1).items()}
    weights = [tensors[n].clone().requires_grad_() for n in ("W1", "b1", "W2", "b2")]
    keys, values = tensors["keys"][0].transpose(0, 1), tensors["values"][0].transpose(0, 1)
    hidden = torch.nn.functional.gelu(keys @ weights[0] + weights[1], approximate="tanh")
    z = torch.nn.functional.layer_norm(hidden @ weights[2] + weights[3], (4,), eps=1e-6)
    error = z * tensors["norm_weight"][:, None] + tensors["norm_bias"][:, None] - (values - keys)
    found = torch.autograd.grad(error.square().sum() / 2, weights)
    step = tensors["step_sizes"][0, 0, :, None, None]
    _, *held = run(tensors, backend=backend)
    assert_equal([w[0] for w in held[:4]], [w - step * g for w, g in zip(weights, found)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_gradcheck(model, backend):
    tensors = arguments(model, batch=1, time=7, heads=1, d_head=3, mini_batch_size=2)

    def function(*values):
        return run(dict(zip(tensors, values, strict=True)), backend=backend)

    assert torch.autograd.gradcheck(function, list(tensors.values()))


@pytest.mark.parametrize("model", MODELS)
def test_low_precision_keeps_float32_weights(model):
    tensors = {name: x.detach().to(torch.bfloat16) for name, x in arguments(model).items()}
    with torch.autocast("cpu", torch.bfloat16):
        output, *weights = run(tensors)
    exact, *exact_weights = run({name: x.double() for name, x in tensors.items()})
    assert output.dtype == torch.bfloat16
    assert {w.dtype for w in weights} == {torch.float32}
    assert_equal([w.double() for w in weights], exact_weights, tolerance=1e-4)
    assert_equal([output.double()], [exact], tolerance=2e-2)


def test_state_owns_its_memory():
    """Training W1 in place afterwards must not change a state that was made before."""
    tensors = {name: x.detach() for name, x in arguments(time=3).items()}
    for backend in BACKENDS:
        _, W1, *_ = run(tensors, backend=backend)
        before = W1.clone()
        tensors["W1"].add_(1)
        assert torch.equal(W1, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": (2, 29, 2, 5)}, r"queries must be \[2, 29, 2, 4\]"),
        ({"step_sizes": (2, 29, 2, 1)}, r"step_sizes must be \[2, 29, 2\]"),
        ({"position_scale": (0,)}, r"position_scale must be \[mini-batch size >= 1\], got \[0\]"),
        ({"b1": (2, 4)}, r"weights must be layers .* from d_head 4 to d_head, got \[\[2, 4, 4\], \[2, 4\]\]"),
        ({"W1": (2, 4, 3), "b1": (2, 1, 3)}, r"from d_head 4 to d_head, got \[\[2, 4, 3\], \[2, 1, 3\]\]"),
        ({"norm_bias": (4,)}, r"norm_bias must be \[2, 4\]"),
        ({"values": (2, 4)}, r"values must be \[batch, time, heads, d_head\]"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    tensors = arguments()
    tensors.update({name: torch.zeros(shape) for name, shape in changes.items()})
    with pytest.raises(ValueError, match=message):
        ttt(**given(tensors))


def test_state_of_another_batch_is_refused():
    _, state = ttt(**given(arguments()), return_state=True)
    with pytest.raises(ValueError, match=r"state.weights must be \[\[3, 2, 4, 4\]"):
        ttt(**given(arguments(batch=3)), state=state)
