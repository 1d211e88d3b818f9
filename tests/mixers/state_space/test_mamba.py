"""Mamba against other people's layers, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch import nn

RENAMED = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "out_proj.weight": "o_proj.weight"}


def transformers_layer() -> nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=1), layer_idx=0)


def mambapy_layer() -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=32, n_layers=1, d_state=8))


@pytest.mark.parametrize(
    ("layer", "source"), [(transformers_layer, "transformers MambaMixer"), (mambapy_layer, "mambapy MambaBlock")]
)
def test_as_other_layers(oracle: Any, layer: Any, source: str) -> None:
    torch.manual_seed(0)
    theirs = layer().eval()
    ours = create_mixer("mamba", 32, d_state=8)
    weights = {RENAMED.get(name, name): value for name, value in theirs.state_dict().items()}
    weights["conv.weight"] = weights["conv.weight"].squeeze(1)
    ours.load_state_dict(weights)
    x = torch.randn(2, 70, 32)
    weight = torch.randn_like(x)
    y, expected = ours(x)[0], theirs(x)
    oracle("mamba", source, y, expected, limit=1e-5)
    for name in ("A_log", "dt_proj.bias"):
        found, wanted = (
            torch.autograd.grad((o * weight).sum(), m.get_parameter(name), retain_graph=True)[0]
            for o, m in ((y, ours), (expected, theirs))
        )
        oracle("mamba", f"{source}, gradient of {name}", found, wanted, limit=1e-4)


def test_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mamba", 64)
    steps = nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1
    torch.testing.assert_close(-mixer.A_log.exp()[5], -torch.arange(1.0, 17))
