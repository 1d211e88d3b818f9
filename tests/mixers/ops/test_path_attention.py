"""PaTH attention: its backends against each other, however a sequence is cut, and against fla's."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers.ops.path_attention import path_attention
from torch import Tensor
from torch.nn import functional as F

NAMES = ("queries", "keys", "values", "directions", "beta", "log_forget")


def inputs(time: int, kv_heads: int = 2, forgetting: bool = False, d_value: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, time, *shape, generator=generator, dtype=torch.float64)

    tensors = {
        "queries": normal(4, 6),
        "keys": normal(kv_heads, 6),
        "values": normal(kv_heads, d_value),
        "directions": F.normalize(normal(kv_heads, 6), dim=-1),
        "beta": 2 * normal(kv_heads).sigmoid(),
    }
    if forgetting:
        tensors["log_forget"] = F.logsigmoid(normal(4))
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def part(tensors: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    return {name: tensor[:, start:end] for name, tensor in tensors.items()}


@pytest.mark.parametrize("time", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("forgetting", [False, True])
def test_chunks_agree_with_the_definition_and_its_gradients(time, kv_heads, forgetting):
    tensors = inputs(time, kv_heads, forgetting)
    weight = torch.randn(2, time, 4, 5, dtype=torch.float64)
    results = []
    for backend in ("chunked", "reference"):
        y, _ = path_attention(**tensors, chunk_size=8, backend=backend)
        results.append((y, *torch.autograd.grad((y * weight).sum(), list(tensors.values()), materialize_grads=True)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("cuts", [[1] * 40, [7, 1, 8, 24], [8, 16, 16], [39, 1], [3, 37]])
@pytest.mark.parametrize("backends", [("chunked", "chunked"), ("reference", "chunked"), ("chunked", "reference")])
@pytest.mark.parametrize(("grad", "forgetting", "d_value"), [(True, True, 5), (False, True, 6), (False, False, 6)])
def test_a_state_continues_whichever_backend_made_it(cuts, backends, grad, forgetting, d_value, monkeypatch):
    from mixerzoo.mixers.ops.path_attention import chunked

    monkeypatch.setattr(chunked, "PIECE", 5)
    tensors = inputs(40, forgetting=forgetting, d_value=d_value)
    with torch.set_grad_enabled(grad):
        whole, _ = path_attention(**tensors, backend="reference")
        ys, state, start = [], None, 0
        for i, length in enumerate(cuts):
            now = part(tensors, start, start + length)
            y, state = path_attention(**now, chunk_size=8, state=state, return_state=True, backend=backends[i % 2])
            ys.append(y)
            start += length
    torch.testing.assert_close(torch.cat(ys, 1), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("forgetting", [False, True])
def test_it_is_that_of_fla(oracle, forgetting):
    from fla.ops.path_attn.naive import naive_path_attn

    tensors = {name: tensor.detach().float() for name, tensor in inputs(100, 2, forgetting, d_value=6).items()}
    ours, _ = path_attention(**tensors)
    scale = 6**-0.5
    # theirs multiplies the sums of log_forget by the scale as well, which the paper does not
    log_forget = tensors["log_forget"] / scale if forgetting else torch.zeros(2, 100, 4)
    q, k, v, w, beta = (tensors[name] for name in NAMES[:5])
    theirs = naive_path_attn(q, k, v, w, beta, log_forget, scale)
    oracle("path_attention", "fla-core naive_path_attn", ours, theirs, limit=5e-6)


def test_without_reflections_it_is_attention():
    from mixerzoo.mixers.ops.attention import attention

    tensors = inputs(30, forgetting=True)
    tensors["beta"] = torch.zeros_like(tensors["beta"])
    y, _ = path_attention(**tensors, chunk_size=8)
    q, k, v = (tensors[name] for name in NAMES[:3])
    expected = attention(q, k, v, log_forget=tensors["log_forget"], backend="reference")
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": torch.zeros(2, 6, 2, 6), "values": torch.zeros(2, 6, 2, 5)}, "of the 5 tokens"),
        ({"directions": torch.zeros(2, 5, 2, 5)}, "directions must have the shape of keys"),
        ({"beta": torch.zeros(2, 5, 4)}, "beta must be"),
        ({"log_forget": torch.zeros(2, 5, 2)}, "log_forget must be"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        path_attention(**{**inputs(5), **changes})


def test_states_of_other_sizes_are_refused():
    tensors = inputs(5)
    _, state = path_attention(**tensors, chunk_size=8, return_state=True)
    with pytest.raises(ValueError, match="of chunk_size 8, not 4"):
        path_attention(**tensors, chunk_size=4, state=state)
    with pytest.raises(ValueError, match="log_forget must be given for all tokens or for none"):
        path_attention(**inputs(5, forgetting=True), chunk_size=8, state=state)
