"""TTT-Linear against released numbers and its definition, and as a mixer."""

from pathlib import Path

import pytest
import torch
from mixerzoo.mixers import check_mixer, create_mixer
from mixerzoo.mixers.ops.ttt import ttt_linear
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden" / "ttt_linear.safetensors"
SEQUENCE = ("queries", "keys", "values", "step_sizes")
BACKENDS = ("torch", "reference")


def arguments(batch=2, time=29, heads=2, d_head=4, mini_batch_size=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    tensors = {name: normal(batch, time, heads, d_head) for name in SEQUENCE[:3]}
    tensors["step_sizes"] = normal(batch, time, heads).sigmoid() / d_head
    tensors["position_scale"] = 1 / torch.arange(1, mini_batch_size + 1).to(dtype)
    tensors["norm_weight"] = 1 + 0.2 * normal(heads, d_head)
    tensors["norm_bias"] = 0.2 * normal(heads, d_head)
    tensors["W1"], tensors["b1"] = normal(heads, d_head, d_head), normal(heads, 1, d_head)
    return {name: x.requires_grad_() for name, x in tensors.items()}


def run(tensors, cuts=None, **options):
    """Output and state tensors of a sequence, cut into calls of the given lengths that carry the state."""
    parameters = {name: x for name, x in tensors.items() if name not in SEQUENCE}
    options["mini_batch_size"] = len(tensors["position_scale"])
    state, outputs, first = None, [], 0
    for length in cuts or [tensors["values"].shape[1]]:
        piece = {name: tensors[name][:, first : first + length] for name in SEQUENCE}
        result = ttt_linear(**piece, **parameters, state=state, return_state=True, **options)
        state, first = result.state, first + length
        outputs.append(result.output)
    assert state.position == tensors["values"].shape[1] == first
    return [torch.cat(outputs, dim=1), state.W1, state.b1, state.grad_W1, state.grad_b1]


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), list(tensors.values()))


def assert_equal(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_released_numbers(backend):
    golden = load_file(GOLDEN)
    tensors = {
        name: golden[name].requires_grad_()
        for name in (*SEQUENCE, "position_scale", "norm_weight", "norm_bias", "W1", "b1")
    }
    output, W1, b1, grad_W1, _ = run(tensors, backend=backend)
    inputs = [tensors[name] for name in SEQUENCE[:3]]
    found = torch.autograd.grad((output * golden["cotangent"]).sum(), inputs)
    assert_equal(
        [output, W1, b1, *found],
        [golden[n] for n in ("output", "final_W1", "final_b1", "grad_queries", "grad_keys", "grad_values")],
        tolerance=1e-8,
    )
    assert not grad_W1.any()  # 64 tokens are four complete mini-batches


@pytest.mark.parametrize("time", [1, 7, 8, 9, 29, 64])
def test_dual_form_agrees_with_the_definition(time):
    tensors = arguments(time=time)
    expected, actual = run(tensors, backend="reference"), run(tensors, backend="torch")
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("cuts", [[1] * 29, [2, 3, 5, 7, 11, 1], [8, 16, 5], [7, 1, 8, 13], [9, 20], [3, 2, 24]])
def test_any_cut_gives_the_same(cuts):
    tensors = arguments(time=29)
    whole, cut = run(tensors), run(tensors, cuts)
    assert_equal(cut, whole)
    assert_equal(gradients(cut, tensors), gradients(whole, tensors))


def test_inner_gradient_is_the_gradient_of_the_inner_loss():
    """One token with step size s moves W1 by -s times what autograd finds for the loss that the paper states."""
    tensors = {name: x.detach() for name, x in arguments(batch=1, time=1, mini_batch_size=1).items()}
    W, b = tensors["W1"].clone().requires_grad_(), tensors["b1"].clone().requires_grad_()
    keys, values = tensors["keys"][0].transpose(0, 1), tensors["values"][0].transpose(0, 1)
    z = torch.nn.functional.layer_norm(keys @ W + b, (4,), eps=1e-6)
    error = z * tensors["norm_weight"][:, None] + tensors["norm_bias"][:, None] - (values - keys)
    grad_W, grad_b = torch.autograd.grad(error.square().sum() / 2, [W, b])
    step = tensors["step_sizes"][0, 0, :, None, None]
    for backend in BACKENDS:
        _, W1, b1, *_ = run(tensors, backend=backend)
        assert_equal([W1[0], b1[0]], [W - step * grad_W, b - step * grad_b])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    tensors = arguments(batch=1, time=5, heads=1, d_head=2, mini_batch_size=2)

    def function(*values):
        return run(dict(zip(tensors, values, strict=True)), backend=backend)

    assert torch.autograd.gradcheck(function, list(tensors.values()))


def test_low_precision_keeps_float32_weights():
    tensors = {name: x.detach().to(torch.bfloat16) for name, x in arguments().items()}
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
        ({"position_scale": (7,)}, r"position_scale must be \[8\]"),
        ({"b1": (2, 4)}, r"b1 must be \[2, 1, 4\]"),
        ({"values": (2, 4)}, r"values must be \[batch, time, heads, d_head\]"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    tensors = arguments()
    tensors.update({name: torch.zeros(shape) for name, shape in changes.items()})
    with pytest.raises(ValueError, match=message):
        ttt_linear(**tensors, mini_batch_size=8)


def test_state_of_another_batch_is_refused():
    tensors = arguments()
    state = ttt_linear(**tensors, mini_batch_size=8, return_state=True).state
    with pytest.raises(ValueError, match=r"state.W1 must be \[3, 2, 4, 4\]"):
        ttt_linear(**arguments(batch=3), mini_batch_size=8, state=state)


def test_contract():
    check_mixer("ttt_linear", compile_backend="aot_eager")


def test_contract_of_other_options():
    options = {"heads": 1, "mini_batch_size": 5, "conv_size": 0, "rope": False, "gate": False}
    check_mixer("ttt_linear", options=options, only=range(1, 11))


def test_position_scale_starts_as_the_mean_and_never_turns_around():
    mixer = create_mixer("ttt_linear", 32, mini_batch_size=4)
    assert mixer.position_scale().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    with torch.no_grad():
        mixer.position_offset.fill_(-0.4)
    assert mixer.position_scale().tolist() == pytest.approx([0.6, 0.1, 0, 0])


def test_rotations_start_anew_with_every_mini_batch():
    """Without a convolution the same tokens are read alike in any mini-batch if the weights do not move."""
    mixer = create_mixer("ttt_linear", 32, mini_batch_size=4, conv_size=0, inner_learning_rate=1e-12)
    x = torch.randn(1, 4, 32)
    y, _ = mixer(torch.cat([x, x, x], dim=1))
    torch.testing.assert_close(y[:, 8:], y[:, :4])
    shifted, _ = mixer(torch.cat([x[:, :1], x], dim=1))
    assert (shifted[:, 1:4] - y[:, :3]).abs().max() > 1e-3


def test_learning_rate_moves_the_weights():
    """With steps of almost zero the inner model keeps its initial weights, else it learns."""
    x = torch.randn(2, 32, 32)
    moved = []
    for rate in (1e-12, 1.0):
        mixer = create_mixer("ttt_linear", 32, inner_learning_rate=rate)
        _, state = mixer(x, return_state=True)
        moved.append((state.fast.W1 - mixer.W1).abs().max().item())
    assert moved[0] < 1e-8
    assert moved[1] > 1e-2


def test_state_size_is_constant():
    mixer = create_mixer("ttt_linear", 32, mini_batch_size=8)
    x = torch.randn(2, 33, 32)
    sizes = [mixer(x[:, :t], None, True)[1].nbytes for t in (1, 7, 8, 9, 33)]
    assert sizes == [2 * 4 * (4 * 2 * (8 * 8 + 8) + 3 * 96)] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads must divide d_model 32"),
        ({"heads": 32}, "must be even, got 1; or rope=False"),
        ({"mini_batch_size": 0}, "mini_batch_size must be >= 1"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate > 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("ttt_linear", 32, **options)
