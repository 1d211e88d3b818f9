"""Retention against the layer of fla, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layer on a CPU: with their own naive functions, and torch's norm and SiLU, for their kernels."""
    from fla.layers import multiscale_retention as theirs
    from fla.modules.rotary.ops import rotary_embedding_ref
    from fla.ops.retention.naive import naive_retention

    def recurrent(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None

    class Rotary(torch.nn.Module):
        def forward(self, q: Any, k: Any, **_: Any) -> Any:
            angles = torch.arange(q.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16)
            return [rotary_embedding_ref(x, angles.cos(), angles.sin()) for x in (q, k)]

    monkeypatch.setattr(theirs, "fused_recurrent_retention", recurrent)
    torch.manual_seed(0)
    layer: Any = theirs.MultiScaleRetention(hidden_size=32, num_heads=2, fuse_norm=False)
    layer.rotary, layer.g_norm = Rotary(), torch.nn.RMSNorm(32, eps=1e-5)
    layer.gate_fn = torch.nn.SiLU()
    mixer: Any = create_mixer("retention", 32, heads=2, chunk_size=16)
    with torch.no_grad():
        for ours, projection in zip(
            mixer.qkv_proj.weight.split(mixer.sizes), (layer.q_proj, layer.k_proj, layer.v_proj)
        ):
            ours.copy_(projection.weight)
        mixer.output.g_proj.weight.copy_(layer.g_proj.weight)
        mixer.output.o_proj.weight.copy_(layer.o_proj.weight)
        x = torch.randn(2, 50, 32)
        oracle("retention", "fla-core MultiScaleRetention on naive_retention", mixer(x)[0], layer(x)[0], limit=1e-5)


def test_heads_forget_at_their_own_pace() -> None:
    mixer: Any = create_mixer("retention", 32, heads=4)
    expected = [1 - 2.0 ** -(5 + h) for h in range(4)]
    torch.testing.assert_close(mixer.log_decay(torch.zeros(1).double()).exp(), torch.tensor(expected).double())


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="d_head must be even for rotary positions, got 3"):
        create_mixer("retention", 32, d_head=3)
    with pytest.raises(ValueError, match=r"expand_v \* d_head must be a whole number of at least 1, got 4\.8"):
        create_mixer("retention", 32, d_head=4, expand_v=1.2)
