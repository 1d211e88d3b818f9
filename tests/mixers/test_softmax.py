import math

import pytest
import torch
from mixerzoo.mixers import check_mixer, create_mixer
from mixerzoo.mixers.layers import apply_rotary, rotary_angles, yarn_logit_scale
from mixerzoo.mixers.ops.attention import attention
from mixerzoo.mixers.ops.dispatch import record_backends
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

MIXERS = [
    ("softmax_attention", {}),
    ("softmax_attention", {"kv_heads": 2, "positions": "nope", "qk_norm": True}),
    ("softmax_attention", {"kv_heads": 1, "d_head": 6, "conv_size": 4}),
    ("softmax_attention", {"positions": "yarn", "factor": 8.0, "trained_length": 16, "kv_heads": 2}),
    ("softmax_attention", {"positions": "nope", "logit_scale": "log"}),
    ("sliding_window_attention", {"window": 5, "kv_heads": 2}),
    ("sliding_window_attention", {"window": 40, "conv_size": 3, "qk_norm": True}),
    ("sliding_window_attention", {"window": 1}),
    ("sliding_window_attention", {"window": 500}),
]


def qkv(time, key_time, heads=4, kv_heads=2, d_head=6, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, time, heads, d_head), *[(batch, key_time, kv_heads, d_head)] * 2]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def double_mixer(name, options, seed=0):
    torch.manual_seed(seed)
    return create_mixer(name, 16, **options).double(), torch.randn(2, 131, 16, dtype=torch.float64)


class LargestResult(TorchDispatchMode):
    """Elements in the largest result of an operator that is not a view."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(
    ("time", "key_time", "window"),
    [
        (1, 1, None),
        (7, 7, None),
        (1, 20, None),
        (7, 20, None),
        (530, 600, None),  # more than one block of queries that continue a cache
        (7, 7, 1),
        (100, 100, 1),
        (1, 20, 5),
        (7, 20, 5),
        (100, 100, 5),
        (100, 104, 5),
        (100, 102, 5),  # a cache that does not fill the window
        (100, 200, 5),
        (101, 101, 33),
        (66, 90, 33),
        (67, 70, 33),
        (20, 20, 20),
        (20, 20, 21),
        (20, 30, 1000),
    ],
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sdpa_agrees_with_the_definition_and_its_gradients(time, key_time, window, kv_heads):
    inputs = qkv(time, key_time, kv_heads=kv_heads)
    weight = torch.randn(2, time, 4, 6, dtype=torch.float64)
    results = []
    for backend in ("sdpa", "reference"):
        y = attention(*inputs, window=window, backend=backend)
        results.append((y, *torch.autograd.grad((y * weight).sum(), inputs)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_continuing_a_cache_without_gradients_agrees_with_the_definition(dtype, kv_heads):
    for time, key_time in ((2, 3), (7, 20), (530, 600)):
        inputs = [x.to(dtype) for x in qkv(time, key_time, kv_heads=kv_heads)]
        expected = attention(*(x.double() for x in inputs), backend="reference")
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
        y = attention(*inputs)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("grad", [True, False])
def test_a_long_cache_is_continued_in_bounded_memory(grad):
    q, k, v = (x.detach().requires_grad_(grad) for x in qkv(512, 2**16, heads=1, kv_heads=1, batch=1))
    with LargestResult() as largest, torch.set_grad_enabled(grad):
        attention(q, k, v)
    assert largest.elements <= 2**24  # a mask for all queries would have twice as many
    if not grad:  # and no mask at all, nor a copy of the cache
        assert largest.elements <= q.numel()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention_agrees_with_softmax_written_out(backend):
    q, k, v = qkv(5, 9)
    y = attention(q, k, v, window=3, backend=backend)
    for t in range(5):
        seen = slice(t + 4 - 2, t + 4 + 1)  # the query stands at position t + 4 and sees three keys
        for head in range(4):
            scores = k[:, seen, head // 2] @ q[:, t, head, :, None] / 6**0.5
            expected = (scores.softmax(dim=1) * v[:, seen, head // 2]).sum(1)
            torch.testing.assert_close(y[:, t, head], expected, rtol=0, atol=1e-12)


def test_attention_without_window_is_torchs():
    q, k, v = qkv(9, 9, kv_heads=4)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    for backend in ("auto", "reference"):
        torch.testing.assert_close(attention(q, k, v, backend=backend), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("time", "window"), [(4, None), (40, 3)])
def test_attention_passes_gradcheck(time, window):
    assert torch.autograd.gradcheck(lambda *t: attention(*t, window=window), qkv(time, time + 2, 2, 1, 3, batch=1))


def test_a_window_costs_linear_memory():
    sizes = []
    for time in (512, 2048):
        inputs = qkv(time, time, batch=1)
        with LargestResult() as largest:
            attention(*inputs, window=16).sum().backward()
        sizes.append(largest.elements)
    assert sizes[1] < 4.5 * sizes[0]  # all scores would grow by 16


def test_decoding_does_not_copy_the_cache():
    q, k, v = (x.detach() for x in qkv(1, 4096, heads=4, kv_heads=1, batch=1))
    with LargestResult() as largest:
        attention(q, k, v)
        attention(q, k, v, window=1000)
    assert largest.elements <= q.numel()


@pytest.mark.parametrize(
    ("shapes", "window", "message"),
    [
        (((1, 4, 2), (1, 4, 2, 3), (1, 4, 2, 3)), None, "queries must be"),
        (((1, 4, 2, 3), (1, 3, 2, 3), (1, 3, 2, 3)), None, "key_time >= 4"),
        (((1, 4, 2, 3), (2, 4, 2, 3), (2, 4, 2, 3)), None, "batch = 1"),
        (((1, 4, 3, 3), (1, 4, 2, 3), (1, 4, 2, 3)), None, "multiple of the 2 key heads"),
        (((1, 4, 2, 3), (1, 4, 2, 3), (1, 5, 2, 3)), None, "values must be"),
        (((1, 4, 2, 3), (1, 4, 2, 3), (1, 4, 2, 3)), 0, "window must be at least 1"),
    ],
)
def test_attention_refuses_sizes_that_do_not_fit(shapes, window, message):
    with pytest.raises(ValueError, match=message):
        attention(*(torch.zeros(s) for s in shapes), window=window)


def test_backends_are_recorded_and_refused():
    inputs = qkv(3, 3)
    with record_backends() as record:
        attention(*inputs)
        attention(*inputs, window=2, backend="reference")
    assert record == {"attention": {"sdpa:flash", "reference"}}
    with pytest.raises(RuntimeError, match="CUDA"):
        attention(*inputs, backend="flash_attn")
    with pytest.raises(ValueError, match="no backend 'fast'"):
        attention(*inputs, backend="fast")


@pytest.mark.parametrize(("name", "options"), MIXERS)
@pytest.mark.parametrize("cuts", [[1] * 131, [7, 11, 113], [130, 1], [1, 33, 97]])
@pytest.mark.parametrize("grad", [True, False])
def test_mixers_give_the_same_however_the_sequence_is_cut(name, options, cuts, grad):
    mixer, x = double_mixer(name, options)
    with torch.set_grad_enabled(grad):
        whole, _ = mixer(x)
        parts, state = [], None
        for part in x.split(cuts, dim=1):
            y, state = mixer(part, state, return_state=True)
            parts.append(y)
            limit = mixer.max_state_nbytes(2, torch.float64)
            assert limit is None or state.nbytes <= limit
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    assert state.position == 131


@pytest.mark.parametrize(("name", "options"), MIXERS)
def test_every_parameter_gets_a_gradient(name, options):
    mixer, x = double_mixer(name, options)
    mixer(x)[0].square().sum().backward()
    for parameter in mixer.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(("name", "options"), MIXERS[:7])
def test_bf16_autocast_stays_close(name, options):
    mixer, x = double_mixer(name, options)
    mixer, x = mixer.float(), x.float()
    expected, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        first, state = mixer(x[:, :100], return_state=True)
        second, _ = mixer(x[:, 100:], state)
    y = torch.cat([first, second], 1).float()
    assert (y - expected).norm() < 0.02 * expected.norm()


def test_compiled_mixers_agree():
    mixer, x = double_mixer("sliding_window_attention", {"window": 8, "conv_size": 3, "qk_norm": True})
    torch.compiler.reset()
    compiled = torch.compile(mixer, backend="aot_eager")
    first, state = compiled(x[:, :60], None, True)
    second, _ = compiled(x[:, 60:], state, True)
    torch.testing.assert_close(torch.cat([first, second], 1), mixer(x)[0], rtol=0, atol=1e-12)


def test_the_cache_grows_by_the_same_bytes_for_every_token():
    mixer = create_mixer("softmax_attention", 16, heads=4, kv_heads=2, conv_size=4)
    for time in (1, 2, 17, 64):
        state = mixer(torch.randn(3, time, 16), return_state=True)[1]
        assert state.nbytes == 3 * 4 * (time * 2 * 2 * 4 + 3 * (4 + 2 + 2) * 4)


@torch.no_grad()
def test_a_window_bounds_the_state():
    mixer = create_mixer("sliding_window_attention", 16, window=6, conv_size=4)
    x, held = torch.randn(2, 300, 16), []
    state = None
    for part in x.split(1, dim=1):
        _, state = mixer(part, state, return_state=True)
        held.append(state.nbytes)
    assert max(held) <= mixer.max_state_nbytes(2)
    assert max(held[:100]) == max(held[100:])
    prefilled = mixer(x, return_state=True)[1]
    assert prefilled.nbytes == 2 * 4 * (5 * 2 * 16 + 3 * 48)
    assert mixer.max_state_nbytes(2, torch.bfloat16) == mixer.max_state_nbytes(2) // 2


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), [MIXERS[0], MIXERS[5]])
def test_one_state_continues_in_several_ways(name, options):
    mixer, x = double_mixer(name, options)
    _, state = mixer(x[:, :50], return_state=True)
    _, state = mixer(x[:, 50:51], state, return_state=True)  # now its buffers have room
    other = x.clone()
    other[:, 51:] += 1
    for tokens in (x, other, x):
        y, _ = mixer(tokens[:, 51:53], state)
        torch.testing.assert_close(y, mixer(tokens[:, :53])[0][:, 51:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", ["rope", "nope"])
def test_the_order_of_earlier_tokens_matters_with_rotary_embedding_alone(positions):
    torch.manual_seed(0)
    mixer, x = create_mixer("softmax_attention", 16, positions=positions), torch.randn(1, 6, 16)
    swapped = x.clone()
    swapped[:, [1, 3]] = x[:, [3, 1]]
    change = (mixer(x)[0][:, -1] - mixer(swapped)[0][:, -1]).abs().max()
    assert change > 1e-3 if positions == "rope" else change < 1e-6


def test_grouped_queries_share_keys():
    mixer = create_mixer("softmax_attention", 16, heads=4, kv_heads=2, positions="nope")
    # the same mixer with the keys and values of each group written out for every head
    q, k, v = mixer.qkv_proj.weight.detach().split([16, 8, 8])
    written_out = create_mixer("softmax_attention", 16, heads=4, positions="nope")
    repeated = [w.unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1) for w in (k, v)]
    written_out.load_state_dict({"qkv_proj.weight": torch.cat([q, *repeated]), "o_proj.weight": mixer.o_proj.weight})
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(mixer(x)[0], written_out(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("softmax_attention", {"heads": 3}, "no multiple of heads"),
        ("softmax_attention", {"kv_heads": 3}, "multiple of kv_heads"),
        ("softmax_attention", {"d_head": 3}, "even for positions='rope'"),
        ("softmax_attention", {"rope_theta": 0.0}, "rope_theta must be a finite number above 0"),
        ("softmax_attention", {"conv_size": -1}, "conv_size must be a whole number of at least 0"),
        ("softmax_attention", {"windows": 3}, "no option 'windows'"),
        ("softmax_attention", {"positions": "alibi"}, "positions must be one of rope, nope, yarn"),
        ("softmax_attention", {"positions": "yarn"}, "trained_length must be"),
        (
            "softmax_attention",
            {"positions": "yarn", "factor": 0.5, "trained_length": 8},
            "factor must be a finite number of at least 1",
        ),
        ("softmax_attention", {"factor": 2.0}, "belong to positions='yarn'"),
        ("softmax_attention", {"logit_scale": "linear"}, "logit_scale must be one of none, log"),
        ("sliding_window_attention", {"window": 0}, "window must be a whole number of at least 1"),
        ("sliding_window_attention", {"positions": "yarn"}, "positions must be one of rope, nope, got 'yarn'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 16, **options)


def test_a_state_of_another_window_is_refused():
    x = torch.randn(1, 4, 16)
    _, state = create_mixer("sliding_window_attention", 16, window=4)(x, return_state=True)
    with pytest.raises(ValueError, match="window=4"):
        create_mixer("sliding_window_attention", 16, window=5)(x, state)


@pytest.mark.parametrize(("factor", "trained_length"), [(1.0, 64), (4.0, 64), (16.0, 4096)])
def test_yarn_is_the_papers_formula(factor, trained_length):
    theta, d_head, position = 10000.0, 16, 77
    angles = rotary_angles(
        position, 1, d_head, theta, torch.device("cpu"), factor=factor, trained_length=trained_length
    )
    regimes = set()
    for d in range(d_head // 2):
        wavelength = 2 * math.pi * theta ** (2 * d / d_head)
        ratio = trained_length / wavelength
        ramp = 0.0 if ratio < 1 else 1.0 if ratio > 32 else (ratio - 1) / 31
        regimes.add(0 if ramp == 0 else 1 if ramp == 1 else 2)
        frequency = theta ** (-2 * d / d_head)
        expected = ((1 - ramp) * frequency / factor + ramp * frequency) * position
        assert angles[0, d].item() == pytest.approx(expected, rel=1e-12)
    assert regimes == ({0, 2} if trained_length == 64 else {0, 1, 2})
    assert math.sqrt(yarn_logit_scale(factor)) == pytest.approx(0.1 * math.log(factor) + 1)


def test_yarn_attention_is_attention_with_its_angles_and_temperature():
    options = {"heads": 2, "positions": "yarn", "factor": 8.0, "trained_length": 12}
    mixer, x = double_mixer("softmax_attention", options)
    q, k, v = (part.unflatten(-1, (2, 8)) for part in mixer.qkv_proj(x).chunk(3, dim=-1))
    angles = rotary_angles(0, 131, 8, 10000.0, x.device, factor=8.0, trained_length=12)
    scores = torch.einsum("bthd,bshd->bhts", apply_rotary(q, angles), apply_rotary(k, angles)) / 8**0.5
    scores = scores * (0.1 * math.log(8) + 1) ** 2
    weights = scores.masked_fill(torch.ones(131, 131).triu(1).bool(), -torch.inf).softmax(-1)
    expected = mixer.o_proj(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-12)


def test_the_context_is_extended_after_training():
    trained, x = double_mixer("softmax_attention", {})
    extended, _ = double_mixer("softmax_attention", {"positions": "yarn", "factor": 4.0, "trained_length": 32})
    before, state = trained(x, return_state=True)
    trained.extend_context(4, trained_length=32)
    assert torch.equal(trained(x)[0], extended(x)[0]) and not torch.allclose(trained(x)[0], before)
    assert trained.signature == extended.signature
    with pytest.raises(ValueError, match=r"made by .*positions='rope'.*cannot be continued by .*factor=4\.0"):
        trained(x, state)
    trained.extend_context(1, trained_length=32)
    assert torch.equal(trained(x)[0], before)
    trained(x, state)


def test_a_context_that_cannot_be_extended_is_refused():
    with pytest.raises(ValueError, match="no angles to extend"):
        create_mixer("softmax_attention", 16, positions="nope").extend_context(2, trained_length=8)
    with pytest.raises(ValueError, match="factor must be at least 1"):
        create_mixer("softmax_attention", 16).extend_context(0.5, trained_length=8)


def test_logits_grow_with_the_logarithm_of_what_is_seen():
    mixer, x = double_mixer("softmax_attention", {"heads": 2, "positions": "nope", "logit_scale": "log"})
    with torch.no_grad():
        mixer.log_scale.copy_(torch.tensor([0.3, 0.7]))
    q, k, v = (part.unflatten(-1, (2, 8)) for part in mixer.qkv_proj(x).chunk(3, dim=-1))
    y = torch.zeros(2, 131, 2, 8, dtype=torch.float64)
    for t in (0, 1, 50, 130):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / 8**0.5
        weights = (scores * math.log(t + 1) * mixer.log_scale[:, None]).softmax(-1)
        y[:, t] = torch.einsum("bhs,bshd->bhd", weights, v[:, : t + 1])
        torch.testing.assert_close(mixer(x)[0][:, t], mixer.o_proj(y[:, t].flatten(1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("logit_scale", ["none", "log"])
def test_a_training_window_restricts_attention_in_training_alone(logit_scale):
    mixer, x = double_mixer("softmax_attention", {"logit_scale": logit_scale})
    whole, state = mixer(x, return_state=True)
    mixer.train_window = 5
    windowed, held = mixer(x, return_state=True)
    changed = x.clone()
    changed[:, 20] += 1
    difference = (mixer(changed)[0] - windowed).abs().amax((0, 2))
    assert difference[20:25].min() > 1e-6 and difference[25:].max() < 1e-12
    if logit_scale == "none":
        window, _ = double_mixer("sliding_window_attention", {"window": 5})
        torch.testing.assert_close(windowed, window(x)[0], rtol=0, atol=1e-12)
    # the state holds every token all the same, and in eval mode every token is seen
    assert torch.equal(held.keys.values, state.keys.values) and mixer.signature == state.signature
    assert torch.equal(mixer.eval()(x)[0], whole)


@pytest.mark.parametrize(
    "options",
    [{"positions": "yarn", "factor": 4.0, "trained_length": 32}, {"positions": "nope", "logit_scale": "log"}],
)
def test_other_positions_keep_the_contract(options):
    report = check_mixer("softmax_attention", options=options, compile_backend="aot_eager")
    assert report.passed, report
