import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.linear.linear_attention import FEATURE_MAPS, elu_features, taylor_features
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.ops.recurrence import linear_recurrence
from torch.nn import functional as F

OPTIONS = [
    {},
    {"normaliser": False},
    {"feature_map": "identity", "normaliser": False, "conv_size": 3},
    {"feature_map": "taylor", "d_feature": 4},
    {"feature_map": "taylor", "d_feature": 4, "normaliser": False, "conv_size": 4, "d_head": 6, "heads": 2},
]


def linear_attention(queries, keys, values, **options):
    return linear_recurrence(queries, keys, values, scale=1.0, **options)


def qkv(time, d_k=5, d_v=3, heads=2, batch=2, seed=0):
    """Positive queries and keys, as of features that can be normalised."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.rand(2, batch, time, heads, d_k, generator=generator, dtype=torch.float64)
    v = torch.randn(batch, time, heads, d_v, generator=generator, dtype=torch.float64)
    return [x.clone().requires_grad_() for x in (q, k, v)]


def double_mixer(options):
    torch.manual_seed(0)
    return create_mixer("linear_attention", 16, chunk_size=16, **options).double(), torch.randn(2, 75, 16).double()


def results(inputs, **options):
    """Output, final state, and the gradients of a fixed function of both."""
    output, state = linear_attention(*inputs, return_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (output, state)]
    start = [options["state"]] if options.get("state") is not None else []
    loss = (output * weights[0]).sum() + (state * weights[1]).sum()
    return output, state, *torch.autograd.grad(loss, [*inputs, *start])


@pytest.mark.parametrize("normaliser", [True, False])
@pytest.mark.parametrize(("time", "chunk_size"), [(1, 64), (5, 64), (64, 64), (65, 64), (37, 1), (37, 7), (48, 16)])
@pytest.mark.parametrize("continued", [True, False])
def test_chunks_agree_with_the_recurrence_and_its_gradients(normaliser, time, chunk_size, continued):
    state = torch.rand(2, 2, 5, 3 + normaliser, dtype=torch.float64, requires_grad=True) if continued else None
    given = {"normaliser": normaliser, "chunk_size": chunk_size, "state": state}
    for ours, expected in zip(results(qkv(time), **given), results(qkv(time), **given, backend="reference")):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_output_is_an_average_of_values_weighted_by_products_of_features(backend):
    q, k, v = qkv(7)
    weights = torch.einsum("bthk,bshk->bhts", q, k).tril()
    summed = torch.einsum("bhts,bshv->bthv", weights, v)
    averaged = torch.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(linear_attention(q, k, v, normaliser=False, backend=backend)[0], summed)
    torch.testing.assert_close(linear_attention(q, k, v, normaliser=True, backend=backend)[0], averaged)


@pytest.mark.parametrize("normaliser", [True, False])
def test_agrees_with_fla_and_its_gradients(normaliser):
    naive = pytest.importorskip("fla.ops.linear_attn.naive")
    inputs = qkv(192)
    weight = torch.randn(2, 192, 2, 3, dtype=torch.float64)
    expected = naive.naive_chunk_linear_attn(*inputs, scale=1.0, normalize=normaliser)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    for chunk_size in (64, 50):
        ours = linear_attention(*inputs, normaliser=normaliser, chunk_size=chunk_size)[0]
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
        for a, b in zip(torch.autograd.grad((ours * weight).sum(), inputs), expected_gradients):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normaliser", [True, False])
def test_agrees_with_the_states_of_fla(normaliser):
    naive = pytest.importorskip("fla.ops.linear_attn.naive")
    q, k, v = (x.detach() for x in qkv(20))
    given = {"scale": 1.0, "output_final_state": True, "normalize": normaliser}
    expected, theirs = None, None
    ours, state = None, None
    for part in (slice(0, 13), slice(13, 20)):
        inputs = q[:, part], k[:, part], v[:, part]
        expected, theirs = naive.naive_recurrent_linear_attn(*inputs, initial_state=theirs, **given)
        ours, state = linear_attention(*inputs, normaliser=normaliser, state=state, return_state=True)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # fla computes this one in float32
    if normaliser:
        theirs = torch.cat([theirs[0], theirs[1].permute(0, 2, 3, 1)], dim=-1)
    torch.testing.assert_close(state.float(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normaliser", [True, False])
def test_the_op_passes_gradcheck(normaliser):
    state = torch.rand(1, 1, 2, 2 + normaliser, dtype=torch.float64, requires_grad=True)

    def op(q, k, v, state):
        return linear_attention(q, k, v, normaliser=normaliser, chunk_size=3, state=state, return_state=True)

    assert torch.autograd.gradcheck(op, (*qkv(7, d_k=2, d_v=2, heads=1, batch=1), state))


def test_low_precision_values_keep_a_float32_state():
    inputs = [x.detach() for x in qkv(200)]
    expected, exact = linear_attention(*inputs, normaliser=True, return_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        low = [x.bfloat16() for x in inputs]
        output, state = linear_attention(*low, normaliser=True, return_state=True)
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.double(), expected, rtol=0.03, atol=0.03)
    # the state sums what bf16 inputs are, without rounding the sums to bf16 again
    summed = torch.einsum("bthk,bthv->bhkv", low[1].double(), F.pad(low[2].double(), (0, 1), value=1.0))
    torch.testing.assert_close(state.double(), summed, rtol=1e-5, atol=1e-4)
    assert (exact - summed).abs().max() > 1e-4


def test_features_that_underflow_give_zero_and_finite_gradients():
    q, k, v = (x.detach().float() for x in qkv(6))
    q = torch.zeros_like(q, requires_grad=True)
    output, _ = linear_attention(q, k, v, normaliser=True)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": (1, 4, 2, 3)}, "queries must be .* got .1, 4, 2, 3"),
        ({"keys": (1, 4, 5)}, "keys must be"),
        ({"values": (1, 3, 2, 6)}, "keys must be .1, 3, k_heads, d_k"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"state": (1, 2, 5, 6)}, r"d_v \+ 1\] = \[1, 2, 5, 7\] with normaliser=True"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    given = {"queries": (1, 4, 2, 5), "keys": (1, 4, 2, 5), "values": (1, 4, 2, 6), **change}
    given = {name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in given.items()}
    with pytest.raises(ValueError, match=message):
        linear_attention(**given, normaliser=True)


def test_backends_are_recorded_and_refused():
    with record_backends() as record:
        linear_attention(*qkv(3), normaliser=True)
    assert record == {"recurrence": {"chunked"}}
    with pytest.raises(RuntimeError, match="CUDA"):
        linear_attention(*qkv(3), normaliser=True, backend="fla")


def test_elu_features_are_elu_plus_one_with_all_digits():
    x = torch.linspace(-12, 6, 37, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(elu_features(x), F.elu(x) + 1)
    (ours,) = torch.autograd.grad(elu_features(x).sum(), x)
    (theirs,) = torch.autograd.grad(F.elu(x).sum(), x)
    torch.testing.assert_close(ours, theirs)
    far = torch.tensor([-30.0, -80.0])
    torch.testing.assert_close(elu_features(far), far.exp(), rtol=1e-6, atol=0)


def test_products_of_taylor_features_are_the_second_order_expansion_of_exp():
    q, k = torch.randn(2, 50, 6, dtype=torch.float64)
    product = (taylor_features(q) * taylor_features(k)).sum(-1)
    score = (q * k).sum(-1) / 6**0.5
    torch.testing.assert_close(product, 1 + score + score**2 / 2)
    assert taylor_features(q).shape == (50, 1 + 6 + 36)
    assert product.min() >= 0.5


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cuts", [[1] * 75, [7, 11, 57], [74, 1], [16, 32, 27]])
def test_the_mixer_gives_the_same_however_the_sequence_is_cut(options, cuts):
    mixer, x = double_mixer(options)
    whole, last = mixer(x, return_state=True)
    parts, state = [], None
    for part in x.split(cuts, dim=1):
        y, state = mixer(part, state, return_state=True)
        assert state.nbytes == last.nbytes
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state.memory, last.memory, rtol=1e-11, atol=1e-12)
    assert state.position == last.position == 75


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_gets_a_gradient(options):
    mixer, x = double_mixer(options)
    mixer(x)[0].square().sum().backward()
    for parameter in mixer.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("options", OPTIONS)
def test_bf16_autocast_stays_close(options):
    mixer, x = double_mixer(options)
    mixer, x = mixer.float(), x.float()
    expected, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        first, state = mixer(x[:, :50], return_state=True)
        second, _ = mixer(x[:, 50:], state)
    assert state.memory.dtype == torch.float32
    assert (torch.cat([first, second], 1).float() - expected).norm() < 0.02 * expected.norm()


def test_the_state_has_the_same_size_at_every_position():
    mixer = create_mixer("linear_attention", 16, heads=2, conv_size=4)
    for time in (1, 2, 70):
        _, state = mixer(torch.randn(3, time, 16), return_state=True)
        assert state.nbytes == 3 * 4 * (2 * 8 * (8 + 1) + 3 * 48)


def test_without_normaliser_the_output_keeps_its_scale():
    torch.manual_seed(0)
    mixer, x = create_mixer("linear_attention", 16, normaliser=False), torch.randn(1, 2000, 16)
    y, _ = mixer(x)
    assert 0.5 < y[:, -100:].std() / y[:, :100].std() < 2


def test_the_compiled_mixer_agrees():
    mixer, x = double_mixer({"feature_map": "taylor", "d_feature": 4, "conv_size": 3})
    torch.compiler.reset()
    compiled = torch.compile(mixer, backend="aot_eager")
    first, state = compiled(x[:, :40], None, True)
    second, _ = compiled(x[:, 40:], state, True)
    torch.testing.assert_close(torch.cat([first, second], 1), mixer(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "no multiple of heads"),
        ({"feature_map": "relu"}, "elu, identity, taylor"),
        ({"feature_map": "identity"}, "normaliser=False"),
        ({"d_feature": 0}, "at least 1"),
        ({"chunk_size": 0}, "at least 1"),
        ({"conv_size": -1}, "conv_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("linear_attention", 16, **options)


def test_every_feature_map_is_tested():
    assert {options.get("feature_map", "elu") for options in OPTIONS} == set(FEATURE_MAPS)
