"""RWKV-6 against the layer of fla, with copied weights, and low precision where it says something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.contract.trial import relative_error
from torch.nn import functional as F


class GroupNorm(torch.nn.GroupNorm):
    """Channels last, as fla's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


def awake(name: str, **options: Any) -> Any:
    """A mixer whose weights are all far from 0: at first it puts out 0, which is equal to anything."""
    torch.manual_seed(0)
    mixer: Any = create_mixer(name, 32, heads=2, chunk_size=16, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layer on a CPU: with their own naive functions, and torch's norm and SiLU, for their kernels."""
    from fla.layers import rwkv6 as theirs
    from fla.modules.token_shift import token_shift_ref
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    def recurrent(r: Any, k: Any, v: Any, w: Any, u: Any, scale: float, **_: Any) -> Any:
        output, state = naive_recurrent_rwkv6(*(x.transpose(1, 2) for x in (r, k, v, w)), u, scale=scale)
        return output.transpose(1, 2), state

    monkeypatch.setattr(theirs, "fused_recurrent_rwkv6", recurrent)
    monkeypatch.setattr(theirs, "token_shift", token_shift_ref)
    mixer = awake("rwkv6", shift_rank=4, decay_rank=8)
    with pytest.warns(UserWarning, match="cross-checking"):
        layer: Any = theirs.RWKV6Attention(
            hidden_size=32, expand_k=1.0, num_heads=2, proj_low_rank_dim=4, gate_low_rank_dim=8
        )
    layer.g_norm, layer.gate_fn = GroupNorm(2, 32, eps=64e-5), F.silu
    with torch.no_grad():
        layer.x_proj[0].mu.copy_(mixer.shift[0])
        layer.x_proj[0].linear.weight.copy_(mixer.shift_down.weight[[*order(4)]])
        # theirs: [d_model, 5 * rank], in the order r w k v g; ours: [5, rank, d_model], in the order w k v r g
        layer.x_proj[2].weight.copy_(mixer.shift_up[[3, 0, 1, 2, 4]].permute(2, 0, 1).flatten(1))
        layer.x_bias.copy_(mixer.shift[[4, 1, 2, 3, 5]])
        layer.w_proj.linear.lora[0].weight.copy_(mixer.decay_proj.down.weight)
        layer.w_proj.linear.lora[2].load_state_dict(mixer.decay_proj.up.state_dict())
        for projection, ours in ((layer.r_proj, mixer.q_proj), (layer.k_proj, mixer.k_proj)):
            projection.linear.load_state_dict(ours.state_dict())
        for projection, ours in ((layer.v_proj, mixer.v_proj), (layer.g_proj, mixer.g_proj)):
            projection.linear.load_state_dict(ours.state_dict())
        layer.bonus.copy_(mixer.bonus)
        layer.g_norm.weight.copy_(mixer.o_norm.weight.flatten())
        layer.g_norm.bias.copy_(mixer.o_norm.bias.flatten())
        layer.o_proj.load_state_dict(mixer.o_proj.state_dict())
        x = torch.randn(2, 50, 32)
        oracle("rwkv6", "fla-core RWKV6Attention on naive_recurrent_rwkv6", mixer(x)[0], layer(x)[0], limit=1e-5)


def order(rank: int) -> list[int]:
    """Rows of our map to the shares, ordered w k v r g, as theirs has them, r w k v g."""
    return [part * rank + row for part in (3, 0, 1, 2, 4) for row in range(rank)]


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7"])
def test_low_precision_once_it_has_learned(name: str) -> None:
    mixer = awake(name)
    x = torch.randn(2, 75, 32)
    with torch.no_grad():
        expected = mixer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            actual = mixer(x)[0]
    assert relative_error(actual, expected) <= mixer.card.low_precision_tolerance


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7"])
def test_any_place_in_a_model_has_finite_weights_and_no_output_at_first(name: str) -> None:
    for layer, layers in ((0, 1), (0, 3), (1, 3), (2, 3)):
        mixer: Any = create_mixer(name, 32, heads=2, layer=layer, n_layers=layers)
        assert all(parameter.isfinite().all() for parameter in mixer.parameters())
        assert not mixer(torch.randn(1, 5, 32))[0].any()
