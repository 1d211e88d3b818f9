"""The matrix memory of xLSTM: backends against each other, and against the released implementations."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from mixerzoo.mixers.contract.trial import relative_error
from mixerzoo.mixers.ops.mlstm import mlstm
from torch import Tensor
from torch.nn import functional as F

HEADS, D_K, D_V = 2, 8, 6


def problem(time: int = 37, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Gates of either sign: e^10 and more times what was there before, and nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"queries": (D_K,), "keys": (D_K,), "values": (D_V,), "log_input": (), "log_forget": ()}
    found = {
        name: torch.randn(2, time, HEADS, *shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    found["log_input"] = 8 * found["log_input"]
    found["log_forget"] = F.logsigmoid(5 * found["log_forget"])
    return {name: x.to(dtype).requires_grad_() for name, x in found.items()}


def cut(given: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    return {name: x[:, start:end] for name, x in given.items()}


@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_chunks_give_the_reference(chunk_size: int) -> None:
    given = problem()
    weight = torch.randn(2, 37, HEADS, D_V, dtype=torch.float64)
    results = []
    for backend in ("reference", "chunked"):
        output, state = mlstm(**given, chunk_size=chunk_size, return_state=True, backend=backend)
        assert state is not None
        results.append([output, *state, *torch.autograd.grad((output * weight).sum(), list(given.values()))])
    for expected, actual in zip(*results):
        assert relative_error(actual, expected) <= 1e-11


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_state_continues(backend: str) -> None:
    given: Any = problem()
    whole, _ = mlstm(**given, backend=backend)
    first, state = mlstm(**cut(given, 0, 13), chunk_size=8, return_state=True, backend=backend)
    rest, none = mlstm(**cut(given, 13, 37), chunk_size=8, state=state, backend=backend)
    assert none is None and relative_error(torch.cat([first, rest], dim=1), whole) <= 1e-11


def test_gates_of_any_size_stay_finite() -> None:
    given = problem(dtype=torch.float32)
    with torch.no_grad():
        given["log_input"] *= 100
        given["log_forget"] *= 100
    output, _ = mlstm(**given, chunk_size=8)
    gradients = torch.autograd.grad(output.sum(), list(given.values()))
    assert output.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert relative_error(output, mlstm(**given, backend="reference")[0]) <= 1e-4


def test_the_definition_without_a_maximum() -> None:
    """Dense and not stabilised, where the numbers stay within range."""
    q, k, v, i, f = problem(time=12).values()
    total = f.cumsum(1).transpose(1, 2)
    gates = total[..., :, None] - total[..., None, :] + i.transpose(1, 2)[..., None, :]
    weights = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D_K) * gates.exp().tril()
    normaliser = weights.sum(-1, keepdim=True).abs().clamp(min=1)
    expected = torch.einsum("bhts,bshd->bthd", weights / normaliser, v)
    # what EPSILON changes is of its own order
    assert relative_error(mlstm(q, k, v, i, f)[0], expected) <= 1e-4


def test_the_xlstm_package_agrees(oracle: Any) -> None:
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple, recurrent_step_stabilized_simple

    q, k, v, i, f = problem().values()
    # theirs takes the gate before the sigmoid: logit(exp(log_forget))
    raw = f - torch.log1p(-f.exp())
    q, k, v = (x.detach().transpose(1, 2) for x in (q, k, F.pad(v, (0, D_K - D_V))))
    i_head, raw = (x.detach().transpose(1, 2)[..., None] for x in (i, raw))
    output, state = mlstm(*problem().values(), return_state=True)
    expected = parallel_stabilized_simple(q, k, v, i_head, raw)[..., :D_V].transpose(1, 2)
    oracle("mlstm", "xlstm parallel_stabilized_simple", output, expected, limit=1e-9)
    c, n, m = q.new_zeros(2, HEADS, D_K, D_K), q.new_zeros(2, HEADS, D_K, 1), q.new_full((2, HEADS, 1, 1), -1e9)
    for t in range(q.shape[2]):
        token = [x[:, :, t : t + 1].clone() for x in (q, k, v, i_head, raw)]
        _, (c, n, m) = recurrent_step_stabilized_simple(c, n, m, *token)
    assert state is not None
    # theirs scales the keys, ours the queries
    held = torch.cat([c[..., :D_V], n], dim=-1) * math.sqrt(D_K)
    oracle("mlstm", "xlstm recurrent_step_stabilized_simple", state[0], held, limit=1e-9)
    assert relative_error(state[1], m.flatten(1)) <= 1e-12


def test_transformers_agrees(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plain functions exist where it finds no xlstm package."""
    monkeypatch.setattr("transformers.utils.is_xlstm_available", lambda: False)
    theirs = importlib.import_module("transformers.models.xlstm.modeling_xlstm")
    given = problem(time=32)
    q, k, v, i, f = (x.detach().transpose(1, 2) for x in given.values())
    raw = f - torch.log1p(-f.exp())
    initial = {"c_initial": q.new_zeros(2, HEADS, D_K, D_V), "n_initial": q.new_zeros(2, HEADS, D_K)}
    # its memory starts with the maximum 0 by default, which EPSILON makes a difference for
    initial["m_initial"] = q.new_full((2, HEADS, 1), -1e9)
    expected = theirs.mlstm_chunkwise_native_autograd(q, k, v, i, raw, chunk_size=8, **initial)
    source = "transformers mlstm_chunkwise_native_autograd"
    oracle("mlstm", source, mlstm(**given)[0], expected.transpose(1, 2), limit=1e-9)


def test_sizes_are_checked() -> None:
    given: Any = problem()
    with pytest.raises(ValueError, match=r"queries must have the shape of keys, \[2, 37, 2, 8\], got \[2, 37, 2, 6\]"):
        mlstm(**{**given, "queries": given["values"]})
    with pytest.raises(ValueError, match=r"log_forget must be .* = \[2, 37, 2\], got \[2, 37, 2, 8\]"):
        mlstm(**{**given, "log_forget": given["keys"]})
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        mlstm(**given, chunk_size=0)
    _, state = mlstm(**given, return_state=True)
    assert state is not None
    with pytest.raises(ValueError, match=r"state must be .* = \[\[2, 2, 8, 7\], \[2, 2\]\], got \[\[1, 2, 8, 7\]"):
        mlstm(**given, state=(state[0][:1], state[1]))
