"""The gated delta rule against its definition and fla-core's, and Gated DeltaNet as a mixer."""

from types import ModuleType

import pytest
import torch
from mixerzoo.mixers import check_mixer, create_mixer
from mixerzoo.mixers.delta import GatedDeltaNet
from mixerzoo.mixers.ops.recurrence import linear_recurrence
from torch.nn import functional as F


def gated_delta_rule(queries, keys, values, log_decay, beta, **options):
    return linear_recurrence(queries, keys, values, log_decay=log_decay, beta=beta, **options)


def inputs(batch=2, time=37, heads=2, d_k=5, d_v=3, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (batch, time, heads)
    q, k = torch.randn(2, *sizes, d_k, generator=g, dtype=dtype)
    v = torch.randn(*sizes, d_v, generator=g, dtype=dtype)
    log_decay, beta = -torch.rand(sizes, generator=g, dtype=dtype), torch.rand(sizes, generator=g, dtype=dtype)
    state = torch.randn(batch, heads, d_k, d_v, generator=g, dtype=dtype)
    return [x.requires_grad_() for x in (q, F.normalize(k, dim=-1).detach(), v, log_decay, beta, state)]


def run(tensors, **options):
    *sequence, state = tensors
    return gated_delta_rule(*sequence, state=state, return_state=True, **options)


def gradients(results, tensors):
    return torch.autograd.grad(sum(r.sin().sum() for r in results), tensors)


def assert_equal(actual, expected, tolerance=1e-10):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("time", "chunk_size"), [(1, 64), (2, 1), (37, 1), (37, 8), (37, 37), (37, 64), (32, 16), (131, 64)]
)
def test_chunks_agree_with_the_definition(time, chunk_size):
    tensors = inputs(time=time)
    expected = run(tensors, backend="reference")
    actual = run(tensors, chunk_size=chunk_size, backend="chunked")
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


def test_definition_by_hand():
    """One key written twice: the second value replaces the share beta of the decayed first one."""
    k = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 2, 1, 2)
    v = torch.tensor([[4.0], [10.0]], dtype=torch.float64).reshape(1, 2, 1, 1)
    decay, beta = torch.tensor([[[1.0], [0.5]]]).double().log(), torch.tensor([[[1.0], [0.25]]]).double()
    for backend in ("reference", "chunked"):
        output, state = gated_delta_rule(k, k, v, decay, beta, scale=2.0, return_state=True, backend=backend)
        # 4 is halved to 2, a quarter of which is replaced by a quarter of 10: 2 - 0.5 + 2.5 = 4
        torch.testing.assert_close(output.flatten(), torch.tensor([8.0, 8.0], dtype=torch.float64))
        torch.testing.assert_close(state, torch.tensor([[[[4.0], [0.0]]]], dtype=torch.float64))


class DoubleTorch(ModuleType):
    """torch for the functions of fla-core that convert to float32: they convert to float64 instead."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
@pytest.mark.parametrize("scale", [None, 0.7])
def test_agrees_with_fla_naive(monkeypatch, scale):
    naive = pytest.importorskip("fla.ops.gated_delta_rule.naive")
    monkeypatch.setattr(naive, "torch", DoubleTorch("torch"))
    tensors = inputs(time=70, d_k=8, d_v=6)
    q, k, v, g, beta, state = tensors
    expected = naive.naive_recurrent_gated_delta_rule(
        q, k, v, beta, g, scale=scale, initial_state=state, output_final_state=True
    )
    assert expected[0].dtype == torch.float64
    expected_gradients = gradients(expected, tensors)
    for backend in ("chunked", "reference"):
        actual = run(tensors, scale=scale, chunk_size=32, backend=backend)
        assert_equal(actual, expected)
        assert_equal(gradients(actual, tensors), expected_gradients)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_gradcheck(backend):
    tensors = inputs(batch=1, time=5, heads=1, d_k=3, d_v=2)
    assert torch.autograd.gradcheck(lambda *t: run(t, chunk_size=2, backend=backend), tensors)


def test_strong_decay_stays_finite():
    q, k, v, _, beta, state = inputs(time=64)
    decay = torch.full_like(beta, -200.0).requires_grad_()
    tensors = [q, k, v, decay, beta, state]
    actual, expected = run(tensors), run(tensors, backend="reference")
    assert_equal(actual, expected)
    assert_equal(gradients(actual, tensors), gradients(expected, tensors))


def test_state_is_float32_and_output_follows_values():
    tensors = [x.detach().to(torch.bfloat16) for x in inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        output, state = run(tensors)
    exact, exact_state = run([x.double() for x in tensors])
    assert output.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": (2, 4, 2, 4)}, r"queries must be \[2, 4, q_heads, 5\] .*, got \[2, 4, 2, 4\]"),
        ({"values": (2, 3, 2, 3)}, r"keys must be \[2, 3, k_heads, d_k\] .*, got \[2, 4, 2, 5\]"),
        ({"beta": (2, 4, 3)}, r"beta must be \[2, 4, 2\], got \[2, 4, 3\]"),
        ({"state": (1, 2, 5, 3)}, r"state must be .* = \[2, 2, 5, 3\] .*, got \[1, 2, 5, 3\]"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    names = ("queries", "keys", "values", "log_decay", "beta", "state")
    arguments = dict(zip(names, inputs(time=4), strict=True))
    arguments.update({name: torch.zeros(shape) for name, shape in changes.items()})
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**arguments)


def test_unusable_chunk_size_and_backend():
    tensors = inputs(time=4)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        run(tensors, chunk_size=0)
    with pytest.raises(RuntimeError, match=r"fla.*CUDA"):
        run(tensors, backend="fla")


@pytest.mark.parametrize(
    "options", [{"conv_size": 0, "output_gate": False, "expand_v": 2.0}, {"heads": 3, "d_head": 6, "expand_v": 0.5}]
)
def test_contract_of_other_options(options):
    check_mixer("gated_deltanet", options=options, only=range(1, 11))


def test_options_change_what_they_say():
    base = dict(create_mixer("gated_deltanet", 32).named_parameters())
    assert base["qkv_proj.weight"].shape == (96, 32)
    wide = dict(create_mixer("gated_deltanet", 32, heads=2, d_head=8, expand_v=3.0).named_parameters())
    assert wide["qkv_proj.weight"].shape == (2 * (8 + 8 + 24), 32)
    assert wide["output.o_proj.weight"].shape == (32, 48)
    without = dict(create_mixer("gated_deltanet", 32, conv_size=0, output_gate=False).named_parameters())
    assert set(base) - set(without) == {"conv.weight", "output.g_proj.weight"}


def test_initial_decay_is_that_of_mamba2():
    mixer = GatedDeltaNet(64, heads=64)
    assert ((mixer.decay.A_log.exp() >= 1) & (mixer.decay.A_log.exp() <= 16)).all()
    dt = F.softplus(mixer.decay.dt_bias)
    assert ((dt > 0.99e-3) & (dt < 0.101)).all()
    assert dt.max() / dt.min() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "32 is no multiple of heads = 5: give d_head"),
        ({"heads": 0}, "heads must be a whole number of at least 1"),
        ({"expand_v": 0.3}, "whole number of at least 1, got 2.4"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("gated_deltanet", 32, **options)


def test_a_rewritten_key_holds_its_last_value():
    """Orthogonal keys, beta 1, no decay: the last value written to a key stays, not the sum of its values."""
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 1, 0]].reshape(1, 6, 1, 4)
    values = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(1, 6, 1, 1)
    ones = torch.ones(1, 6, 1, dtype=torch.float64)
    _, state = gated_delta_rule(keys, keys, values, 0 * ones, ones, scale=1.0, return_state=True)
    assert state.flatten().tolist() == pytest.approx([6.0, 5.0, 4.0, 0.0])


def test_state_size_is_constant():
    mixer = create_mixer("gated_deltanet", 32)
    x = torch.randn(2, 70, 32)
    sizes = [mixer(x[:, :t], None, True)[1].nbytes for t in (1, 2, 63, 64, 70)]
    assert sizes == [2 * 4 * (4 * 8 * 8 + 3 * 96)] * 5
