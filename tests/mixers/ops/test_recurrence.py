"""The recurrence: chunks against the definition, under any decay, and both against other people's code."""

import dataclasses
import importlib
import importlib.util
import inspect
import itertools
from types import ModuleType

import pytest
import torch
from mixerzoo.mixers.ops import libraries
from mixerzoo.mixers.ops.dispatch import Call, record_backends
from mixerzoo.mixers.ops.recurrence import OP, fla, linear_recurrence, reference
from mixerzoo.mixers.ops.recurrence.fla import refuses
from mixerzoo.mixers.ops.recurrence.inputs import Inputs
from torch.nn import functional as F

DECAYS = ["none", "head", "channel"]
WRITES = ["plain", "normaliser", "bonus", "beta", "erase", "erase keys"]


def problem(
    decay="none", write="plain", time=37, heads=4, q_heads=4, k_heads=4, d_k=5, d_v=3, dtype=torch.float64, batch=2
):
    """Arguments of `linear_recurrence`, all of them leaves with gradients, state included."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def unit(*shape):
        return F.normalize(normal(*shape), dim=-1)

    sizes, channels = (batch, time, heads), (batch, time, heads, d_k)
    given = {
        "queries": normal(batch, time, q_heads, d_k),
        "keys": unit(batch, time, k_heads, d_k),
        "values": normal(*sizes, d_v),
    }
    given["state"] = normal(batch, heads, d_k, d_v + (write == "normaliser"))
    if decay != "none":
        given["log_decay"] = -normal(*(sizes if decay == "head" else channels)).exp()
    if write == "normaliser":
        given |= {name: given[name].exp() for name in ("queries", "keys", "state")}
    if write == "bonus":
        given["bonus"] = normal(heads, d_k)
    if write == "beta":
        given["beta"] = 2 * normal(*sizes).sigmoid()
    given = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
    if write.startswith("erase"):
        a = given["keys"].detach().repeat_interleave(heads // k_heads, 2) if write == "erase keys" else unit(*channels)
        a = (a * normal(*channels).sigmoid()).to(dtype).requires_grad_()
        b = -a.detach() * normal(*channels).to(dtype).sigmoid() if write == "erase" else None
        given["erase"] = (a, None if b is None else b.requires_grad_())
    if write == "normaliser":
        given["normaliser"] = True
    return given


def leaves(given):
    flat = itertools.chain.from_iterable(x if isinstance(x, tuple) else (x,) for x in given.values())
    return [x for x in flat if isinstance(x, torch.Tensor)]


def results(given, **options):
    """Output, state, and the gradients of a function of both."""
    output, state = linear_recurrence(**given, return_state=True, **options)
    return output, state, *torch.autograd.grad(output.sin().sum() + state.sin().sum(), leaves(given))


def assert_close(actual, expected, tolerance=1e-10):
    for a, e in zip(actual, expected, strict=True):
        assert e.isfinite().all()
        torch.testing.assert_close(a.to(e.dtype), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("time", "chunk_size"), [(1, 64), (2, 1), (37, 1), (37, 8), (37, 13), (37, 64), (32, 16)])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("decay", DECAYS)
def test_chunks_agree_with_the_definition(decay, write, time, chunk_size):
    given = problem(decay, write, time)
    assert_close(results(given, chunk_size=chunk_size), results(given, backend="reference"))


@pytest.mark.parametrize(("q_heads", "k_heads"), [(1, 1), (2, 4), (1, 2), (8, 4), (12, 1)])
@pytest.mark.parametrize(
    ("decay", "write"), [("none", "plain"), ("head", "beta"), ("channel", "bonus"), ("head", "erase")]
)
def test_shared_keys_and_grouped_queries(decay, write, q_heads, k_heads):
    """The same as every memory having a key of its own, and every query a memory of its own."""
    given = problem(decay, write, q_heads=q_heads, k_heads=k_heads)
    output, state = linear_recurrence(**given, return_state=True, chunk_size=8)
    group = max(1, q_heads // 4)
    alone = dict(given, queries=given["queries"].repeat_interleave(max(1, 4 // q_heads), 2))
    alone["keys"] = given["keys"].repeat_interleave(4 // k_heads * group, 2)
    for name in ("values", "log_decay", "beta"):
        if name in given:
            alone[name] = given[name].repeat_interleave(group, 2)
    alone["state"] = given["state"].repeat_interleave(group, 1)
    if "bonus" in given:
        alone["bonus"] = given["bonus"].repeat_interleave(group, 0)
    if "erase" in given:
        alone["erase"] = tuple(x.repeat_interleave(group, 2) for x in given["erase"])
    expected, states = linear_recurrence(**alone, return_state=True, backend="reference")
    assert output.shape[2] == max(4, q_heads)
    assert_close([output, state], [expected, states[:, ::group]])
    assert_close(results(given, chunk_size=8), results(given, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_any_decay_is_exact(decay, write, dtype):
    """None, hardly any, strong, and all of it at once, mixed over tokens and channels."""
    given = problem(decay, write, time=150, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    pool = torch.tensor([0, -1e-9, -1e-3, -50, -1e4, -3e38, -torch.inf])
    decays = pool[torch.randint(len(pool), given["log_decay"].shape, generator=generator)]
    weak = torch.rand(decays.shape, generator=generator)
    given["log_decay"] = torch.where(weak < 0.8, -0.1 * weak, decays).to(dtype).requires_grad_()
    exact = dict(given)
    for name, x in given.items():
        if isinstance(x, tuple):
            exact[name] = tuple(None if y is None else y.detach().double().requires_grad_() for y in x)
        elif isinstance(x, torch.Tensor):
            exact[name] = x.detach().double().requires_grad_()
    expected = results(exact, backend="reference")
    for actual, wanted in zip(results(given), expected, strict=True):
        assert wanted.isfinite().all()
        assert actual.isfinite().all()
        limit = 2e-6 if dtype == torch.float32 else 1e-14
        assert (actual - wanted).norm() <= limit * wanted.norm()


def test_hardly_any_decay_is_not_lost_over_a_chunk():
    """1 - 1e-9 is 1 in float32; 64 tokens of it are not. What is forgotten is the difference from no decay at all."""
    ones = torch.ones(1, 65, 1, 1)
    output, _ = linear_recurrence(ones, ones, ones, log_decay=torch.full((1, 65, 1, 1), -1e-6), scale=1.0)
    exact = torch.exp(-1e-6 * torch.arange(65, dtype=torch.float64)).sum()
    assert output[0, -1, 0, 0].double().item() == pytest.approx(exact.item(), rel=2e-7)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("write", WRITES)
def test_gradcheck(write, backend):
    given = problem("channel", write, time=5, heads=1, q_heads=2, k_heads=1, d_k=3, d_v=2)
    options = {"normaliser": True} if given.pop("normaliser", False) else {}
    names, erase = [n for n in given if n != "erase"], given.get("erase", ())

    def run(*tensors):
        arguments = dict(zip(names, tensors, strict=False))
        if erase:
            arguments["erase"] = (*tensors[len(names) :], None)[:2]
        return linear_recurrence(**arguments, **options, chunk_size=2, return_state=True, backend=backend)

    assert torch.autograd.gradcheck(run, [given[n] for n in names] + [x for x in erase if x is not None])


def test_delta_rule_by_hand():
    """One key written twice: the second value replaces the share beta of the decayed first one."""
    k = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 2, 1, 2)
    v = torch.tensor([[4.0], [10.0]], dtype=torch.float64).reshape(1, 2, 1, 1)
    decay, beta = torch.tensor([[[1.0], [0.5]]]).double().log(), torch.tensor([[[1.0], [0.25]]]).double()
    for backend in ("reference", "chunked"):
        output, state = linear_recurrence(
            k, k, v, log_decay=decay, beta=beta, scale=2.0, return_state=True, backend=backend
        )
        # 4 is halved to 2, a quarter of which is replaced by a quarter of 10: 2 - 0.5 + 2.5 = 4
        torch.testing.assert_close(output.flatten(), torch.tensor([8.0, 8.0], dtype=torch.float64))
        torch.testing.assert_close(state, torch.tensor([[[[4.0], [0.0]]]], dtype=torch.float64))


def test_a_rewritten_key_holds_its_last_value():
    """Orthogonal keys, beta 1, no decay: the last value written to a key stays, not the sum of its values."""
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 1, 0]].reshape(1, 6, 1, 4)
    values = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(1, 6, 1, 1)
    _, state = linear_recurrence(keys, keys, values, beta=torch.ones(1, 6, 1).double(), scale=1.0, return_state=True)
    assert state.flatten().tolist() == pytest.approx([6.0, 5.0, 4.0, 0.0])


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_output_is_an_average_of_values_weighted_by_products_of_features(backend):
    q, k, v = torch.rand(3, 2, 7, 4, 5, dtype=torch.float64)
    weights = torch.einsum("bthk,bshk->bhts", q, k).tril()
    summed = torch.einsum("bhts,bshv->bthv", weights, v)
    averaged = torch.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(linear_recurrence(q, k, v, scale=1.0, backend=backend)[0], summed)
    for scale in (None, 3.0):
        output, _ = linear_recurrence(q, k, v, normaliser=True, scale=scale, backend=backend)
        torch.testing.assert_close(output, averaged)


def test_features_that_underflow_give_zero_and_finite_gradients():
    k, v = torch.rand(2, 1, 6, 2, 5)
    q = torch.zeros_like(k, requires_grad=True)
    output, _ = linear_recurrence(q, k, v, normaliser=True)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("write", WRITES)
def test_low_precision_values_keep_a_float32_state(write):
    given = {n: x.detach() if isinstance(x, torch.Tensor) else x for n, x in problem("head", write, time=200).items()}
    low = {n: x.bfloat16() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    if "erase" in low:
        low["erase"] = tuple(x if x is None else x.detach().bfloat16() for x in low["erase"])
    exact = {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in low.items()}
    if "erase" in low:
        exact["erase"] = tuple(x if x is None else x.double() for x in low["erase"])
    with torch.autocast("cpu", torch.bfloat16):
        output, state = linear_recurrence(**low, return_state=True)
    expected, expected_state = linear_recurrence(**exact, return_state=True)
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    # no more is lost than by rounding the result: the sums are made in float32
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected.bfloat16(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"queries": (2, 4, 3, 5)},
            r"queries must be \[2, 4, q_heads, 5\] .* multiple of heads = 4, got \[2, 4, 3, 5\]",
        ),
        ({"keys": (2, 4, 8, 5)}, r"keys must be .* a divisor of heads = 4, got \[2, 4, 8, 5\]"),
        ({"values": (2, 4, 4)}, r"values must be \[batch, time, heads, d_v\].* got \[2, 4, 4\]"),
        ({"log_decay": (2, 4, 1)}, r"log_decay must be \[2, 4, 4\] or \[2, 4, 4, 5\], got \[2, 4, 1\]"),
        ({"beta": (2, 4, 3)}, r"beta must be \[2, 4, 4\], got \[2, 4, 3\]"),
        ({"bonus": (4,)}, r"bonus must be \[4, 5\], got \[4\]"),
        ({"erase": ((2, 4, 4, 5), (2, 4, 4, 3))}, r"erase's b must be \[2, 4, 4, 5\], got \[2, 4, 4, 3\]"),
        ({"state": (1, 4, 5, 3)}, r"state must be .* = \[2, 4, 5, 3\] .* got \[1, 4, 5, 3\]"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"beta": (2, 4, 4), "erase": ((2, 4, 4, 5), (2, 4, 4, 5))}, "beta and erase were both given"),
        ({"beta": (2, 4, 4), "bonus": (4, 5)}, "bonus goes with plain writes only, and beta was given"),
        ({"beta": (2, 4, 4), "normaliser": True}, "normaliser goes with plain writes only"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"queries": (2, 4, 4, 5), "keys": (2, 4, 4, 5), "values": (2, 4, 4, 3), **changes}
    for name, x in arguments.items():
        if isinstance(x, tuple):
            nested = isinstance(x[0], tuple)
            arguments[name] = tuple(torch.zeros(shape) for shape in x) if nested else torch.zeros(x)
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**arguments)


def test_the_backend_is_recorded():
    given = problem(time=3)
    with record_backends() as record:
        linear_recurrence(**given)
    assert record == {"recurrence": {"chunked"}}
    with pytest.raises(RuntimeError, match=r"fla.*CUDA"):
        linear_recurrence(**given, backend="fla")


def swap(x):
    """Time and heads, for the functions of fla-core that take heads first."""
    return x if x is None else x.transpose(1, 2)


def dplr(q, k, v, a, b, gk, *, scale, initial_state, output_final_state):
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    output, state = dplr_recurrence(*(swap(x) for x in (q * scale, k, v, a, b, gk)), initial_state, output_final_state)
    return swap(output) * q.shape[-1] ** 0.5, state  # which it scales by


def delta_rule(q, k, v, beta, *, scale, initial_state, output_final_state):
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    arguments = (swap(x) for x in (q * scale, k, v, beta))
    output, state = delta_rule_recurrence(*arguments, initial_state, output_final_state)
    return swap(output) * q.shape[-1] ** 0.5, state


def rwkv6(r, k, v, w, u, *, scale, initial_state, output_final_state):
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    output, state = naive_recurrent_rwkv6(*(swap(x) for x in (r, k, v, w)), u, scale, initial_state, output_final_state)
    return swap(output), state


def gla(q, k, v, g=None, *, gk=None, scale, initial_state, output_final_state):
    from fla.ops.gla.naive import naive_recurrent_gla

    g = g if gk is None else gk
    output, state = naive_recurrent_gla(q * scale, k, v, g, initial_state, output_final_state)
    return output * q.shape[-1] ** 0.5, state


# mixer, decay, write, the library's module, and a naive function with the kernels' arguments, None where the naive
# module has one of that name
KERNELS = [
    ("linear_attention", "none", "plain", "linear_attn", None),
    ("mamba2", "head", "plain", "simple_gla", None),
    ("gla", "channel", "plain", "gla", gla),
    ("rwkv6", "channel", "bonus", "rwkv6", rwkv6),
    ("rwkv6", "none", "bonus", "rwkv6", rwkv6),
    ("deltanet", "none", "beta", "delta_rule", delta_rule),
    ("gated_deltanet", "head", "beta", "gated_delta_rule", None),
    ("kimi_delta_attention", "channel", "beta", "kda", None),
    ("rwkv7", "channel", "erase", "generalized_delta_rule", dplr),
    ("rwkv7", "head", "erase keys", "generalized_delta_rule", dplr),
    ("rwkv7", "none", "erase", "generalized_delta_rule", dplr),
]


def stand_in(monkeypatch, module, naive):
    """fla's naive function in the place of the chunk kernel and of the recurrent one of a module; returns the names of
    the kernels called. It takes what the adapter hands over by the kernel's names, and asserts what kernels demand."""
    package, names = importlib.import_module(f"fla.ops.{module}"), []
    kernels = [fla.kernel(given) for given in ALL_VARIANTS]
    kernels = {name for k in kernels if k.module == module for name in (k.chunk, k.recurrent)}
    if naive is None:
        naive = getattr(importlib.import_module(f"fla.ops.{module}.naive"), f"naive_recurrent_{module}")

    def fake(name, signature):
        def run(**arguments):
            signature.bind(**arguments)
            for name_of, x in arguments.items():
                if isinstance(x, torch.Tensor):
                    assert x.is_contiguous(), name_of
                    assert x.ndim == 3 or x.shape[-1] % 8 == 0, (name_of, list(x.shape))
            names.append(name)
            return naive(**arguments)

        return run

    for name in kernels:
        monkeypatch.setattr(package, name, fake(name, inspect.signature(getattr(package, name))))
    return names


ALL_VARIANTS = [
    ["erase"],
    ["beta", "channel_decay"],
    ["beta", "decay"],
    ["beta"],
    ["bonus"],
    ["channel_decay"],
    ["decay"],
    [],
]


@pytest.mark.filterwarnings("ignore:Triton is not supported")
@pytest.mark.parametrize(
    ("d_k", "d_v", "time", "stage"), [(8, 16, 70, "chunk"), (5, 3, 70, "chunk"), (5, 3, 1, "fused_recurrent")]
)
@pytest.mark.parametrize(("mixer", "decay", "write", "module", "naive"), KERNELS)
def test_agrees_with_fla_through_the_adapter(
    oracle, monkeypatch, mixer, decay, write, module, naive, d_k, d_v, time, stage
):
    """Sizes that no kernel takes in 16 bit are filled up and cut again; one token runs the recurrent kernel."""
    called = stand_in(monkeypatch, module, naive)
    given = problem(decay, write, time=time, d_k=d_k, d_v=d_v, k_heads=2, q_heads=2, dtype=torch.float32)
    with torch.no_grad():
        state = given.pop("state")
        inputs = Inputs(**{name: given.get(name) for name in Inputs._fields})
        expected, expected_state = fla.linear_recurrence(inputs, 8**-0.5, 64, state, True)
        output, after = linear_recurrence(**given, scale=8**-0.5, state=state, return_state=True, chunk_size=32)
    assert len(called) == 1 and called[0].startswith(f"{stage}_")
    assert expected_state.shape == state.shape and expected_state.is_contiguous()
    oracle(mixer, f"fla-core naive function of {module}", output, expected, limit=2e-6)
    oracle(mixer, f"fla-core naive function of {module}, state", after, expected_state, limit=2e-6)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
def test_a_gradient_never_runs_a_recurrent_kernel(monkeypatch):
    """Most of them have no backward pass, and one is no function of autograd's: its gradients would be missing."""
    called = stand_in(monkeypatch, "kda", None)
    given = problem("channel", "beta", time=1, dtype=torch.float32)
    state = given.pop("state")
    inputs = Inputs(**{name: given.get(name) for name in Inputs._fields})
    fla.linear_recurrence(inputs, 1.0, 64, state, True)
    with torch.no_grad():
        fla.linear_recurrence(inputs, 1.0, 64, state, True)
    assert called == ["chunk_kda", "fused_recurrent_kda"]


@pytest.mark.filterwarnings("ignore:Triton is not supported")
@pytest.mark.parametrize("width", [(16, 5), (16 * 17 + 1, 64)])
def test_the_normaliser_and_taylor_features_reach_fla_in_sizes_that_it_takes(monkeypatch, width):
    """z makes values one feature wider, `taylor` of 16 features makes keys of 273: odd ones are refused in 16 bit."""
    stand_in(monkeypatch, "linear_attn", None)
    monkeypatch.setitem(OP.backends, "fla", dataclasses.replace(OP.backends["fla"], why_not=lambda device: None))
    q, k = torch.rand(2, 1, 70, 1, width[0])
    v = torch.rand(1, 70, 1, width[1])
    actual, state = linear_recurrence(q, k, v, normaliser=True, return_state=True, backend="fla")
    expected, expected_state = linear_recurrence(q, k, v, normaliser=True, return_state=True)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(state, expected_state)


def call(**changes):
    return Call(**{"dtype": torch.bfloat16, "width": 64, "tokens": 512, "gradient": True, "variant": "", **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float64}, "float32 at most, and the values are of float64"),
        ({"variant": "decay+grouped"}, "several queries per memory"),
        ({"variant": "beta", "dtype": torch.float32}, "bfloat16 and float16 only, got float32"),
        ({"variant": "beta", "dtype": torch.float32, "gradient": False, "tokens": 1}, None),
        ({"variant": "beta+decay", "width": 256}, None),
        ({"variant": "beta+decay", "width": 512}, "256 features at most, got 512"),
        ({"variant": "beta+channel_decay", "width": 288}, "256 features at most, got 288"),
        ({"variant": "channel_decay+erase", "width": 288, "tokens": 1}, "256 features at most, got 288"),
        ({"variant": "channel_decay", "width": 512}, None),
    ],
)
def test_what_fla_has_no_kernel_for_is_refused(changes, reason):
    found = refuses(call(**changes))
    assert found is None if reason is None else reason in found


def test_a_value_may_be_wider_than_the_widest_key():
    """Kernels that erase hold a key in one tile, and cut values into blocks: the key alone is measured."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OP, "select", lambda backend, device, call: seen.append(call) or reference.linear_recurrence)
        q, v, beta = torch.rand(1, 2, 1, 256), torch.rand(1, 2, 1, 512), torch.rand(1, 2, 1)
        linear_recurrence(q, q, v, beta=beta)
        linear_recurrence(q, q, v, log_decay=-beta, normaliser=True)
    assert [(c.variant, c.width) for c in seen] == [("beta", 256), ("decay+normaliser", 512)]


@pytest.mark.parametrize(
    ("triton", "capability", "tilelang", "refused"),
    [
        ((3, 6, 0), (9, 0), False, {"beta+decay", "decay"}),
        ((3, 6, 0), (9, 0), True, {"decay"}),  # which keeps its states in float32: tilelang does not take them
        ((3, 3, 1), (9, 0), False, set()),
        ((3, 7, 1), (9, 0), False, set()),
        ((3, 6, 0), (8, 0), False, set()),
        ((3, 6, 0), (10, 0), False, set()),
    ],
)
def test_fla_is_refused_where_its_gated_backward_pass_is_known_to_be_wrong(
    monkeypatch, triton, capability, tilelang, refused
):
    monkeypatch.setattr(libraries, "installed_version", {"triton": triton}.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if tilelang else None)
    variants = ["", "beta", "beta+channel_decay", "beta+decay", "channel_decay", "channel_decay+erase", "decay"]
    found = {v: refuses(call(variant=v)) for v in variants}
    assert {v for v, reason in found.items() if reason} == refused
    assert all("needs Triton 3.7.1 or later" in found[v] and "Triton 3.6.0" in found[v] for v in refused)
    assert not any(refuses(call(variant=v, gradient=False)) for v in variants)


@pytest.mark.parametrize(
    ("installed", "reason"),
    [((0, 6, 0), None), ((0, 4, 2), "fla-core 0.6 or later is needed, and 0.4.2"), (None, "none")],
)
def test_fla_is_refused_in_versions_whose_gradients_are_wrong(monkeypatch, installed, reason):
    monkeypatch.setattr(libraries, "installed_version", {"fla-core": installed}.get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    found = libraries.needs_fla(torch.device("cuda"))
    assert found is None if reason is None else reason in found
    assert "CUDA" in libraries.needs_fla(torch.device("cpu"))


class DoubleTorch(ModuleType):
    """torch for the functions of fla-core that convert to float32: they convert to float64 instead."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
@pytest.mark.parametrize("scale", [None, 0.7])
def test_gradients_agree_with_fla_in_float64(oracle, monkeypatch, scale):
    from fla.ops.gated_delta_rule import naive

    monkeypatch.setattr(naive, "torch", DoubleTorch("torch"))
    given = problem("head", "beta", time=70, d_k=8, d_v=6)
    expected, state = naive.naive_recurrent_gated_delta_rule(
        *(given[n] for n in ("queries", "keys", "values", "beta", "log_decay")), scale, given["state"], True
    )
    assert expected.dtype == torch.float64
    expected_gradients = torch.autograd.grad(expected.sin().sum() + state.sin().sum(), leaves(given))
    for actual, wanted in zip(results(given, scale=scale, chunk_size=32), [expected, state, *expected_gradients]):
        oracle("gated_deltanet", "fla-core naive_recurrent_gated_delta_rule, float64, gradients", actual, wanted, 1e-12)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
def test_agrees_with_fla_gdn2_and_comba(oracle):
    from fla.ops.comba.naive import naive_recurrent_comba
    from fla.ops.gdn2.naive import naive_recurrent_gdn2

    given = problem("channel", "erase keys", time=70, d_k=8, d_v=6, dtype=torch.float32)
    with torch.no_grad():
        q, k, v, g, state = (given[n] for n in ("queries", "keys", "values", "log_decay", "state"))
        b, w = given["erase"][0].abs(), v.sigmoid()
        expected = naive_recurrent_gdn2(q, k, v, g, b, w, initial_state=state, output_final_state=True)
        actual = linear_recurrence(
            q, k, w * v, log_decay=g, erase=(g.exp() * b * k, None), state=state, return_state=True
        )
        for x, y in zip(actual, expected):
            oracle("gated_deltanet_2", "fla-core naive_recurrent_gdn2", x, y, limit=1e-6)
        g, beta, p = g[..., 0], q[..., :1].sigmoid(), 0.7 * k
        expected = naive_recurrent_comba(q, k, v, p, beta[..., 0], g, initial_state=state, output_final_state=True)
        actual = linear_recurrence(
            q, k, beta * v, log_decay=g, erase=(g.exp()[..., None] * beta * p, None), state=state, return_state=True
        )
        for x, y in zip(actual, expected):
            oracle("comba", "fla-core naive_recurrent_comba", x, y, limit=1e-6)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
def test_agrees_with_fla_retention(oracle):
    from fla.ops.retention.naive import naive_retention

    q, k, v = torch.randn(3, 2, 4, 90, 8, generator=torch.Generator().manual_seed(0))
    expected = swap(naive_retention(q, k, v))
    log_decay = torch.log1p(-(2.0 ** (-5.0 - torch.arange(4)))).expand(2, 90, 4)
    output, _ = linear_recurrence(swap(q), swap(k), swap(v), log_decay=log_decay)
    oracle("retention", "fla-core naive_retention", output, expected, limit=1e-6)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
@pytest.mark.parametrize("normaliser", [True, False])
def test_agrees_with_fla_linear_attention_and_its_gradients(oracle, normaliser):
    from fla.ops.linear_attn.naive import naive_chunk_linear_attn

    inputs = [x.requires_grad_() for x in torch.rand(3, 2, 192, 2, 5, dtype=torch.float64)]
    expected = naive_chunk_linear_attn(*inputs, scale=1.0, normalize=normaliser)
    wanted = torch.autograd.grad(expected.sin().sum(), inputs)
    for chunk_size in (64, 50):
        output, _ = linear_recurrence(*inputs, normaliser=normaliser, scale=1.0, chunk_size=chunk_size)
        gradients = torch.autograd.grad(output.sin().sum(), inputs)
        for x, y in zip((output, *gradients), (expected, *wanted), strict=True):
            oracle("linear_attention", "fla-core naive_chunk_linear_attn, gradients", x, y, limit=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("time", [70, 128])
def test_agrees_with_transformers(oracle, time):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    given = problem("head", "beta", time=time, d_k=8, d_v=6, k_heads=2, q_heads=2, dtype=torch.float32)
    with torch.no_grad():
        expected = inspect.unwrap(torch_chunk_gated_delta_rule)(  # the decorator would call fla's kernel
            *(given[n] for n in ("queries", "keys", "values", "log_decay", "beta")), 64, given["state"], True
        )
        for x, y in zip(linear_recurrence(**given, return_state=True), expected, strict=True):
            oracle("gated_deltanet", "transformers torch_chunk_gated_delta_rule", x, y, limit=2e-6)
