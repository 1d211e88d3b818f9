"""Gated slot attention against the layer of flash-linear-attention, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch, kv_heads: int) -> None:
    """Their layer on a CPU: with their own naive function, and torch's norm and SiLU, for their kernels."""
    from fla.layers import gsa as theirs
    from fla.ops.gsa.naive import naive_recurrent_gsa

    def recurrent(*, q: Any, k: Any, v: Any, s: Any, g: Any, scale: float, **_: Any) -> Any:
        return naive_recurrent_gsa(q, k, v, s, g, scale)

    def norm_linear(x: Any, norm: Any, _: Any, weight: Any, bias: Any) -> Any:
        return F.linear(F.rms_norm(x, x.shape[-1:], norm, 1e-5), weight, bias)

    monkeypatch.setattr(theirs, "fused_recurrent_gsa", recurrent)
    monkeypatch.setattr(theirs, "rms_norm_linear", norm_linear)
    torch.manual_seed(0)
    layer: Any = theirs.GatedSlotAttention(
        hidden_size=32, num_heads=4, num_kv_heads=kv_heads, num_slots=12, layer_idx=0
    )
    layer.feature_map = torch.nn.SiLU()
    mixer = create_mixer("gated_slot_attention", 32, heads=4, kv_heads=kv_heads, slots=12, chunk_size=16)
    names = {"f_proj.weight": "decay_proj.weight", "g_norm.weight": "o_norm.weight"}
    with torch.no_grad():
        layer.g_norm.weight.uniform_(0.5, 1.5)
        layer.f_proj.weight.mul_(8)  # gates that do forget
    mixer.load_state_dict({names.get(name, name): p for name, p in layer.state_dict().items()})
    x = torch.randn(2, 50, 32)
    actual, expected = mixer(x)[0], layer(x)[0]
    oracle("gated_slot_attention", "fla-core GatedSlotAttention on naive_recurrent_gsa", actual, expected, limit=1e-5)


def test_kv_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads, got 4 and 3"):
        create_mixer("gated_slot_attention", 32, heads=4, kv_heads=3)
