"""Gated linear attention against the layer of fla, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F


def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layer on a CPU: with their own naive function, and torch's norm and SiLU, for their kernels."""
    from fla.layers import gla as theirs
    from fla.ops.gla.naive import naive_recurrent_gla

    monkeypatch.setattr(theirs, "fused_recurrent_gla", lambda q, k, v, gk, **_: naive_recurrent_gla(q, k, v, gk))
    torch.manual_seed(0)
    layer: Any = theirs.GatedLinearAttention(hidden_size=32, num_heads=2, fuse_norm=False)
    layer.g_norm, layer.gate_fn = torch.nn.RMSNorm(16, eps=1e-5), F.silu
    mixer: Any = create_mixer("gla", 32, heads=2, chunk_size=16)
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    with torch.no_grad():
        for ours, projection in zip(mixer.qkv_proj.weight.split(mixer.sizes), projections):
            ours.copy_(projection.weight)
        mixer.decay_proj.down.load_state_dict(layer.gk_proj[0].state_dict())
        mixer.decay_proj.up.load_state_dict(layer.gk_proj[1].state_dict())
        mixer.output.g_proj.load_state_dict(layer.g_proj.state_dict())
        mixer.output.o_proj.load_state_dict(layer.o_proj.state_dict())
        x = torch.randn(2, 50, 32)
        oracle("gla", "fla-core GatedLinearAttention on naive_recurrent_gla", mixer(x)[0], layer(x)[0], limit=1e-5)
