"""LaCT's fast weights against their definition and released numbers."""

from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.contract.trial import relative_error
from mixerzoo.mixers.ops.lact import lact
from mixerzoo.mixers.ops.lact.reference import apply, orthogonalised
from safetensors.torch import load_file
from torch.nn import functional as F

GOLDEN = Path(__file__).parents[2] / "golden" / "lact.safetensors"
BACKENDS = ("chunked", "reference")
SEQUENCE = ("queries", "keys", "values", "step_sizes", "momentum")
WEIGHTS = ("gate", "down", "up")


def arguments(batch=2, time=29, heads=2, d_in=5, d_hidden=7, d_out=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    tensors = {name: F.normalize(normal(batch, time, heads, d_in), dim=-1) for name in ("queries", "keys")}
    tensors["values"] = normal(batch, time, heads, d_out)
    tensors["step_sizes"] = normal(batch, time, heads, 3).sigmoid() / d_in
    tensors["momentum"] = normal(batch, time, heads).sigmoid()
    tensors |= {name: normal(heads, d_hidden, d_in) / d_in**0.5 for name in ("gate", "up")}
    tensors["down"] = normal(heads, d_out, d_hidden) / d_hidden**0.5
    return {name: x.requires_grad_() for name, x in tensors.items()}


def run(tensors, cuts=None, momentum=True, **options):
    """Output and state tensors of a sequence, cut into calls of the given lengths that carry the state."""
    options = {"chunk_size": 8, **options}
    weights = [tensors[name] for name in WEIGHTS]
    state, outputs, first = None, [], 0
    for length in cuts or [tensors["values"].shape[1]]:
        piece = {name: tensors[name][:, first : first + length] for name in SEQUENCE if momentum or name != "momentum"}
        output, state = lact(**piece, weights=weights, state=state, return_state=True, **options)
        outputs.append(output)
        first += length
    assert state.position == first
    return [torch.cat(outputs, dim=1), *state.weights, *state.gathered, *(state.velocity or ())]


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), list(tensors.values()), materialize_grads=True)


def assert_equal(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "momentum", "muon"), [("plain", 0, 0), ("momentum", 1, 0), ("muon", 1, 1)])
def test_released_numbers(oracle, backend, name, momentum, muon):
    golden = load_file(GOLDEN)
    tensors = {n: golden[n].requires_grad_() for n in (*SEQUENCE, *WEIGHTS)}
    output, *_ = run(tensors, momentum=bool(momentum), muon=bool(muon), backend=backend)
    oracle("lact", f"golden file of the released code, {name}", output, golden[f"{name}.output"], limit=1e-9)
    wanted = [n for n in tensors if momentum or n != "momentum"]
    found = torch.autograd.grad((output * golden["cotangent"]).sum(), [tensors[n] for n in wanted])
    for n, gradient in zip(wanted, found):
        what = f"golden file of the released code, {name}, gradients"
        oracle("lact", what, gradient, golden[f"{name}.grad_{n}"], limit=1e-9)


@pytest.mark.parametrize("time", [1, 8, 29])
@pytest.mark.parametrize("options", [{}, {"momentum": False}, {"muon": True}])
def test_chunks_agree_with_the_definition_and_its_gradients(options, time):
    tensors = arguments(time=time)
    expected, actual = (run(tensors, backend=backend, **options) for backend in ("reference", "chunked"))
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("cuts", [[1] * 29, [2, 3, 5, 7, 11, 1], [8, 16, 5], [7, 1, 8, 13]])
@pytest.mark.parametrize("options", [{}, {"momentum": False, "muon": True}])
def test_any_cut_gives_the_same(cuts, options):
    tensors = arguments()
    whole, cut = run(tensors, **options), run(tensors, cuts, **options)
    assert_equal(cut, whole)
    assert_equal(gradients(cut, tensors), gradients(whole, tensors))


def test_a_chunk_is_applied_before_it_updates():
    """The first chunk reads the initial weights; the second those that autograd finds, with their rows' lengths."""
    tensors = {name: x.detach() for name, x in arguments(time=9, batch=1).items()}
    weights = [tensors[name].clone().requires_grad_() for name in WEIGHTS]
    q, k, v = (tensors[name][0].transpose(0, 1) for name in ("queries", "keys", "values"))
    moved = []
    for i, w in enumerate(weights):
        step = tensors["step_sizes"][0, :8, :, i].T[..., None]
        (gradient,) = torch.autograd.grad((step * apply(weights, k[:, :8]) * v[:, :8]).sum(), w)
        moved.append((w + gradient) / (w + gradient).norm(dim=-1, keepdim=True) * w.norm(dim=-1, keepdim=True))
    output, *after = run(tensors, momentum=False)
    assert_equal([output[0, :8].transpose(0, 1)], [apply(weights, q[:, :8])])
    assert_equal([w[0] for w in after[:3]], moved, tolerance=2e-4)  # theirs adds 1e-5 to lengths
    assert_equal([output[0, 8:].transpose(0, 1)], [apply(moved, q[:, 8:])], tolerance=2e-4)


def test_orthogonalised_matrices_have_singular_values_near_one():
    g = torch.Generator().manual_seed(0)
    for shape in ((6, 6), (4, 9), (9, 4)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(3, *shape, generator=g, dtype=torch.float64)))
        assert values.min() > 0.6 and values.max() < 1.2


@pytest.mark.parametrize("options", [{}, {"momentum": False, "muon": True}])
def test_gradcheck(options):
    tensors = arguments(batch=1, time=5, heads=1, d_in=2, d_hidden=3, d_out=2)

    def function(*values):
        return run(dict(zip(tensors, values, strict=True)), chunk_size=2, **options)

    assert torch.autograd.gradcheck(function, list(tensors.values()))


def test_low_precision_keeps_float32_weights():
    tensors = {name: x.detach().to(torch.bfloat16) for name, x in arguments().items()}
    with torch.autocast("cpu", torch.bfloat16):
        output, *weights = run(tensors)
    exact, *_ = run({name: x.double() for name, x in tensors.items()})
    assert output.dtype == torch.bfloat16 and {w.dtype for w in weights} == {torch.float32}
    assert relative_error(output, exact) < 2e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.zeros(2, 29, 2, 7)}, r"queries must have the shape of keys, \[2, 29, 2, 5\]"),
        ({"values": torch.zeros(2, 28, 2, 4)}, r"values must be \[2, 29, 2\] \+ \[d_out\]"),
        ({"step_sizes": torch.zeros(2, 29, 2)}, r"step_sizes must be \[2, 29, 2, 3\]"),
        ({"momentum": torch.zeros(2, 29)}, r"momentum must be \[2, 29, 2\]"),
        (
            {"values": torch.zeros(2, 29, 2, 3)},
            r"weights must have the shapes \[\[2, 7, 5\], \[2, 3, 7\], \[2, 7, 5\]\]",
        ),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    tensors = arguments()
    given = {name: tensors[name] for name in SEQUENCE} | {"weights": [tensors[name] for name in WEIGHTS]}
    with pytest.raises(ValueError, match=message):
        lact(**given | changes)


def test_a_state_of_another_kind_is_refused():
    tensors = arguments()
    given = {name: tensors[name] for name in SEQUENCE} | {"weights": [tensors[name] for name in WEIGHTS]}
    _, state = lact(**given, return_state=True)
    with pytest.raises(ValueError, match="the state was made with momentum"):
        lact(**{**given, "momentum": None}, state=state)
    with pytest.raises(ValueError, match=r"state.weights must have the shapes \[\[1, 2, 7, 5\]"):
        lact(**{**given, **{name: given[name][:1] for name in SEQUENCE}}, state=state)
