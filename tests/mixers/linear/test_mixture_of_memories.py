"""Mixture of memories against the layer of flash-linear-attention, with copied weights; what its routing promises."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.layers import unit_length
from mixerzoo.mixers.linear.routing import route
from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Module):
    """Their short convolution in torch: of each of the sequences that lie end to end."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach())

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        pieces = [x] if cu_seqlens is None else x.split((cu_seqlens[1:] - cu_seqlens[:-1]).tolist(), dim=1)
        size = self.weight.shape[-1]
        y = [F.conv1d(F.pad(p.mT, (size - 1, 0)), self.weight, groups=len(self.weight)).mT for p in pieces]
        return F.silu(torch.cat(y, dim=1)), None


class GatedNorm(nn.RMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * F.silu(gate)


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Their layer, with their own naive function, and torch's convolution and norm, for their kernels."""
    from fla.layers import mom as theirs
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    def recurrent(
        *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, cu_seqlens: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        inputs = (unit_length(q), unit_length(k), v, beta, g)
        lengths = [q.shape[1]] if cu_seqlens is None else (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        pieces = zip(*(x.split(lengths, dim=1) for x in inputs))
        return torch.cat([naive_recurrent_gated_delta_rule(*p)[0] for p in pieces], dim=1), None

    monkeypatch.setattr(theirs, "fused_recurrent_gated_delta_rule", recurrent)
    # They sort tokens by memory with a sort that need not keep their order, and on a CPU, from 17 tokens on, does not:
    # a memory would read them in no order of time, and later tokens would change earlier outputs.
    monkeypatch.setattr(Tensor, "argsort", functools.partialmethod(Tensor.argsort, stable=True))
    torch.manual_seed(0)
    layer: Any = theirs.MomAttention(hidden_size=32, head_dim=16, num_heads=2, expand_v=1, layer_idx=0, **options)
    for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
        setattr(layer, name, Convolution(getattr(layer, name).weight))
    layer.o_norm = GatedNorm(16, eps=1e-5)
    return layer.eval()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("time", [3, 50])
def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch, shared: bool, time: int) -> None:
    layer = on_the_cpu(monkeypatch, num_memories=3, topk=2, shared_mem=shared)
    mixer = create_mixer("mixture_of_memories", 32, heads=2, memories=3, top_k=2, shared=shared, chunk_size=16)
    both = (
        [*layer.k_proj, *([layer.shared_k] if shared else [])],
        [*layer.v_proj, *([layer.shared_v] if shared else [])],
    )
    kv = {f"kv_proj.{i}.weight": torch.cat([k.weight, v.weight]) for i, (k, v) in enumerate(zip(*both))}
    betas = [*layer.b_proj, *([layer.shared_b] if shared else [])]
    decays = [*layer.a_proj, *([layer.shared_a] if shared else [])]
    convs = (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d)
    mixer.load_state_dict(
        {
            "router_proj.weight": layer.gate.weight,
            "q_proj.weight": layer.q_proj.weight,
            **kv,
            "beta_proj.weight": torch.cat([p.weight for p in betas]),
            "decay_proj.weight": torch.cat([p.weight for p in decays]),
            "conv.weight": torch.cat([c.weight.squeeze(1) for c in convs]),
            "A_log": layer.A_log,
            "dt_bias": layer.dt_bias,
            "output.g_proj.weight": layer.g_proj.weight,
            "output.o_norm.weight": layer.o_norm.weight,
            "output.o_proj.weight": layer.o_proj.weight,
        }
    )
    with torch.no_grad():
        x = torch.randn(2, time, 32)
        actual, expected = mixer(x)[0], layer(x)[0]
    source = "fla-core MomAttention on naive_recurrent_gated_delta_rule"
    oracle("mixture_of_memories", source, actual, expected, limit=1e-5)


def test_their_own_sort_gives_a_memory_its_tokens_out_of_order() -> None:
    """Why the comparison above gives them a stable sort; should this fail, torch's sort has become stable."""
    from fla.layers.mom import transform

    torch.manual_seed(0)
    chosen = torch.randint(3, (1, 200))
    sent, *_, mask = transform(torch.arange(200.0).view(1, 200, 1), F.one_hot(chosen, 3), 3, chosen, None)
    tokens = [sent[place, 0, mask[place, 0], 0] for place in range(3)]
    assert sorted(torch.cat(tokens).tolist()) == list(range(200))
    assert any((t.diff() < 0).any() for t in tokens)


def test_every_token_is_sent_once_to_each_of_its_places() -> None:
    torch.manual_seed(0)
    routes = route(torch.randn(3, 40, 5), top_k=2)
    assert routes.counts.sum(dim=1).tolist() == [80] * 3
    x = torch.arange(120.0).view(3, 40, 1)
    sent = routes.send(x)
    for row in range(3):
        for place in range(5):
            expected = [t for t in range(40) if place in routes.chosen[row, t]]
            assert (sent[row, place, : len(expected), 0] - 40 * row).tolist() == expected
    torch.testing.assert_close(routes.collect(sent), x)


def test_a_memory_that_is_not_chosen_stays_as_it_is() -> None:
    torch.manual_seed(0)
    mixer: Any = create_mixer("mixture_of_memories", 32, heads=2, memories=3, top_k=1)
    _, before = mixer(torch.randn(1, 30, 32), return_state=True)
    x = torch.randn(1, 1, 32)
    _, after = mixer(x, before, return_state=True)
    chosen = int(mixer.router_proj(x).argmax())
    changed = (before.memory != after.memory).flatten(2).any(dim=2).view(4, 2).any(dim=1)
    assert changed.tolist() == [i in (chosen, 3) for i in range(4)]


def test_more_memories_to_choose_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k must be at most memories = 2, got 3"):
        create_mixer("mixture_of_memories", 32, memories=2, top_k=3)
