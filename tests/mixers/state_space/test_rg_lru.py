"""The recurrent block of Griffin against RecurrentGemma's, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


def test_as_recurrent_gemma(oracle: Any) -> None:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(hidden_size=32, num_attention_heads=2, lru_width=48, num_hidden_layers=1)
    theirs = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
    ours = create_mixer("rg_lru", 32, heads=2, width=48)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    rg_lru = theirs.rg_lru
    weights = {"decay": rg_lru.recurrent_param, "conv.weight": theirs.conv_1d.weight.squeeze(1)}
    weights["conv.bias"] = theirs.conv_1d.bias
    weights["gates_weight"] = torch.cat([rg_lru.input_gate_weight, rg_lru.recurrent_gate_weight], dim=-1)
    weights["gates_bias"] = torch.cat([rg_lru.input_gate_bias, rg_lru.recurrent_gate_bias], dim=-1)
    for name, layer in {"in_proj": theirs.linear_x, "g_proj": theirs.linear_y, "o_proj": theirs.linear_out}.items():
        weights |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    ours.load_state_dict({name: value.detach() for name, value in weights.items()})

    x = torch.randn(2, 70, 32)
    expected, _ = theirs(x, torch.arange(70).expand(2, -1), None, use_cache=False)
    y, _ = ours(x)
    oracle("rg_lru", "transformers RecurrentGemmaRecurrentBlock", y, expected, limit=1e-5)
    (found,) = torch.autograd.grad(y.square().sum(), ours.decay)
    (wanted,) = torch.autograd.grad(expected.square().sum(), rg_lru.recurrent_param)
    oracle("rg_lru", "transformers RecurrentGemmaRecurrentBlock, gradient of decay", found, wanted, limit=1e-4)


def test_decays_start_between_their_bounds() -> None:
    torch.manual_seed(0)
    decay = torch.exp(-torch.nn.functional.softplus(create_mixer("rg_lru", 256).decay))
    assert decay.min() >= 0.9 - 1e-5 and decay.max() <= 0.999 + 1e-5
    assert decay.max() - decay.min() > 0.09


def test_gates_that_keep_everything_have_finite_gradients() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("rg_lru", 32)
    with torch.no_grad():
        mixer.decay.fill_(-200.0)  # a is 1 in float32
    y, _ = mixer(torch.randn(1, 20, 32))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_refuses_blocks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="heads must divide the width 32 of the recurrence, got 5"):
        create_mixer("rg_lru", 32, heads=5)
