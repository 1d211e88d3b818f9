"""Titans' memory against its definition, titans-pytorch, and fla's coefficients of the chunked form."""

import itertools

import pytest
import torch
from mixerzoo.mixers.contract.trial import relative_error
from mixerzoo.mixers.ops.inner_model import GELU, apply
from mixerzoo.mixers.ops.titans import titans
from mixerzoo.mixers.ops.titans.chunked import coefficients
from torch.nn import functional as F

BACKENDS = ("chunked", "reference")
SEQUENCE = ("queries", "keys", "values", "step_sizes", "log_decay", "log_momentum")


def arguments(batch=2, time=29, heads=2, widths=(6, 9, 5), dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    tensors = {name: F.normalize(normal(batch, time, heads, widths[0]), dim=-1) for name in ("queries", "keys")}
    tensors["values"] = normal(batch, time, heads, widths[-1])
    tensors["step_sizes"] = normal(batch, time, heads).sigmoid() / widths[0]
    tensors |= {name: F.logsigmoid(normal(batch, time, heads) + 1) for name in ("log_decay", "log_momentum")}
    for i, (d_in, d_out) in enumerate(itertools.pairwise(widths)):
        tensors[f"W{i}"] = normal(heads, d_in, d_out) / d_in**0.5
    return {name: x.requires_grad_() for name, x in tensors.items()}


def run(tensors, cuts=None, chunk_size=8, **options):
    """Output and state tensors of a sequence, cut into calls of the given lengths that carry the state."""
    weights = tuple((x,) for name, x in tensors.items() if name not in SEQUENCE)
    state, outputs, first = None, [], 0
    for length in cuts or [tensors["values"].shape[1]]:
        piece = {name: tensors[name][:, first : first + length] for name in SEQUENCE}
        output, state = titans(
            **piece, weights=weights, chunk_size=chunk_size, state=state, return_state=True, **options
        )
        outputs.append(output)
        first += length
    assert state.position == first
    held = [w for layers in (state.anchor, state.memory, state.momentum) for layer in layers for w in layer]
    return [torch.cat(outputs, dim=1), *held]


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), list(tensors.values()))


def assert_equal(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("widths", [(6, 5), (6, 9, 5), (4, 6, 7, 3)])
@pytest.mark.parametrize("time", [1, 8, 29])
def test_chunks_agree_with_the_definition_and_its_gradients(widths, time):
    tensors = arguments(time=time, widths=widths)
    expected, actual = (run(tensors, backend=backend) for backend in ("reference", "chunked"))
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


def test_many_chunks_agree_with_the_definition():
    """More than have their coefficients computed at once."""
    tensors = arguments(time=71)
    expected, actual = (run(tensors, chunk_size=2, backend=backend) for backend in ("reference", "chunked"))
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors), tolerance=1e-8)


@pytest.mark.parametrize("cuts", [[1] * 29, [2, 3, 5, 7, 11, 1], [8, 16, 5], [7, 1, 8, 13]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_cut_gives_the_same(cuts, backend):
    tensors = arguments()
    whole, cut = run(tensors, backend=backend), run(tensors, cuts, backend=backend)
    assert_equal(cut, whole)
    assert_equal(gradients(cut, tensors), gradients(whole, tensors))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_titans_pytorch(oracle, backend, depth):
    """Their memory with gates per token, and the gradient of a batch of tokens at the weights before it."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(0)
    theirs = NeuralMemory(
        16,
        chunk_size=1,
        batch_size=8,
        model=MemoryMLP(16, depth=depth, expansion_factor=2.0),
        mem_model_norm_add_residual=False,
        pre_rmsnorm=False,
        store_memory_loss_fn=lambda prediction, target: (prediction - target).square().sum(-1),
        default_step_transform_max_lr=0.1,
    ).double()
    x = torch.randn(2, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, state = theirs(x)
        q, k, v = (project(x)[:, :, None] for project in (theirs.to_queries, theirs.to_keys, theirs.to_values))
        step, momentum, forget = (
            gate[0](x) for gate in (theirs.to_adaptive_step, theirs.to_momentum, theirs.to_decay_factor)
        )
        weights = tuple((w,) for w in theirs.memory_model_parameters)
        gates = {"log_decay": F.logsigmoid(-forget), "log_momentum": F.logsigmoid(momentum)}
        options = {"weights": weights, "chunk_size": 8, "backend": backend}
        output, after = titans(q, k, v, 0.1 * step.sigmoid(), **gates, **options, return_state=True)
    oracle("titans", "titans-pytorch NeuralMemory", output.squeeze(2), expected, limit=1e-9)
    updates, momenta = state.states
    for (w,), expected in zip(after.memory, updates.values(), strict=True):
        oracle("titans", "titans-pytorch NeuralMemory, weights", w[:, 0], expected, limit=1e-9)
    for (s,), expected in zip(after.momentum, momenta.values(), strict=True):
        oracle("titans", "titans-pytorch NeuralMemory, momentum", s[:, 0], expected[0], limit=1e-9)


def test_coefficients_of_fla(oracle):
    from fla.ops.titans.naive import combine_params

    tensors = {name: x.detach().transpose(1, 2) for name, x in arguments(time=12).items()}
    step, decay, momentum = tensors["step_sizes"], tensors["log_decay"], tensors["log_momentum"]
    gates = (x[..., None] for x in (step, 1 - decay.exp(), momentum.exp()))
    beta, _, f, _, _, G, m, n = combine_params(*gates, 12)
    found = coefficients(step, decay, momentum)
    oracle("titans", "fla-core combine_params, decay", found.decay.squeeze(-1), beta, limit=1e-9)
    oracle("titans", "fla-core combine_params, momentum", found.carried.squeeze(-1), f)  # theirs in float32
    oracle("titans", "fla-core combine_params, steps", -found.memory_steps, G, limit=1e-9)
    oracle("titans", "fla-core combine_params, last", found.momentum[..., -1, 0], m, limit=1e-9)
    oracle("titans", "fla-core combine_params, last steps", -found.momentum_steps[..., -1, :], n, limit=1e-9)


def test_the_naive_op_of_fla_is_no_oracle():
    """Its step is not along the gradient of its loss, `||LayerNorm(k M) w + b - (v - k)||^2`: of the three terms of the
    gradient through the norm it divides two by the deviation; with all three divided, autograd agrees."""
    from fla.ops.titans.naive import titans_linear

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 1, 8)
    w, b, M = torch.rand(8) + 0.5, torch.randn(8), torch.randn(1, 1, 8, 8, requires_grad=True)
    one, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    _, after = titans_linear(q, k, v, w, b, 0.1 * one, nothing, nothing, 1e-6, 8, M.detach(), True)
    (expected,) = torch.autograd.grad((F.layer_norm(k @ M, (8,), w, b, 1e-6) - (v - k)).square().sum(), M)
    assert relative_error(M - after, 0.1 * expected) > 1
    z = (k @ M).detach()
    deviation = (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    normal = (z - z.mean(-1, keepdim=True)) / deviation
    error = (normal * w + b - (v - k)) * w
    parts = error, error.mean(-1, keepdim=True), normal * (error * normal).mean(-1, keepdim=True)
    assert relative_error(2 * k.mT @ (parts[0] - parts[1] - parts[2]) / deviation, expected) < 1e-5
    theirs = 8 * parts[0] - (parts[1] + parts[2]) / deviation
    assert relative_error(M - after, 0.1 * 2 * k.mT @ theirs) < 1e-5


def test_without_momentum_and_forgetting_it_is_gradient_descent():
    """Two tokens in chunks of one: two steps of plain gradient descent by autograd."""
    tensors = {name: x.detach() for name, x in arguments(batch=1, time=2, heads=1).items()}
    tensors["log_momentum"].fill_(-torch.inf)
    tensors["log_decay"].zero_()
    layers = tuple((tensors[name].clone().requires_grad_(),) for name in ("W0", "W1"))
    for t in range(2):
        loss = (apply(layers, tensors["keys"][:, t], GELU) - tensors["values"][:, t]).square().sum()
        found = torch.autograd.grad(loss, [w for (w,) in layers])
        layers = tuple((w - tensors["step_sizes"][:, t] * g,) for (w,), g in zip(layers, found))
    expected = apply(layers, tensors["queries"][:, 1], GELU)
    for backend in BACKENDS:
        assert_equal([run(tensors, chunk_size=1, backend=backend)[0][:, 1]], [expected])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    tensors = arguments(batch=1, time=5, heads=1, widths=(2, 3, 2))

    def function(*values):
        return run(dict(zip(tensors, values, strict=True)), chunk_size=2, backend=backend)

    assert torch.autograd.gradcheck(function, list(tensors.values()))


def test_hostile_gates_stay_finite():
    tensors = {name: x.detach().float() for name, x in arguments(time=40).items()}
    tensors["log_decay"][:, 5:9] = tensors["log_momentum"][:, 20:24] = -1e4
    tensors["step_sizes"][:, 12:30] = 0
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    results = run(tensors)
    assert all(x.isfinite().all() for x in (*results, *gradients(results, tensors)))
    assert relative_error(results[0], run({n: x.double() for n, x in tensors.items()}, backend="reference")[0]) < 1e-5


def test_low_precision_keeps_float32_weights():
    tensors = {name: x.detach().to(torch.bfloat16) for name, x in arguments().items()}
    with torch.autocast("cpu", torch.bfloat16):
        output, *weights = run(tensors)
    exact, *_ = run({name: x.double() for name, x in tensors.items()})
    assert output.dtype == torch.bfloat16 and {w.dtype for w in weights} == {torch.float32}
    assert relative_error(output, exact) < 2e-2


def test_state_owns_its_memory_and_its_size_is_constant():
    tensors = {name: x.detach() for name, x in arguments(time=17).items()}
    for backend in BACKENDS:
        for time in (1, 8, 17):
            held = run(tensors, [time], backend=backend)[1:]
            assert len({w.untyped_storage().data_ptr() for w in held}) == 6
            before = [w.clone() for w in held]
            for name in ("W0", "W1"):
                tensors[name].add_(1)
            assert all(torch.equal(a, b) for a, b in zip(held, before))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.zeros(2, 29, 2, 7)}, r"queries must have the shape of keys, \[2, 29, 2, 6\]"),
        ({"values": torch.zeros(2, 28, 2, 5)}, r"values must be \[2, 29, 2\] \+ \[d_v\]"),
        ({"log_momentum": torch.zeros(2, 29)}, r"log_momentum must be \[2, 29, 2\]"),
        ({"weights": ((torch.zeros(2, 6, 4),),)}, r"from d_k 6 to d_v 5 for 2 heads, got \[\[2, 6, 4\]\]"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    tensors = arguments()
    given = {name: tensors[name] for name in SEQUENCE} | {"weights": ((tensors["W0"],), (tensors["W1"],))}
    with pytest.raises(ValueError, match=message):
        titans(**given | changes)
