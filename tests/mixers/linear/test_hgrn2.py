"""HGRN2 against the layer of fla, with copied weights, and its lower bounds against those of its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F


@pytest.mark.parametrize("layer", [0, 2])
def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """Their layer on a CPU: with their own naive function, and torch's norm and SiLU, for their kernels. The bounds of
    all layers of their model come from one parameter, at first 0; this is what its forward pass makes of them."""
    from fla.layers import hgrn2 as theirs
    from fla.ops.gla.naive import naive_recurrent_gla

    def norm_and_project(x: Any, weight: Any, bias: Any, projection: Any, projection_bias: Any) -> Any:
        return F.linear(F.rms_norm(x, x.shape[-1:], weight, eps=1e-5), projection)

    monkeypatch.setattr(theirs, "fused_recurrent_gla", lambda q, k, v, gk, **_: naive_recurrent_gla(q, k, v, gk))
    monkeypatch.setattr(theirs, "rms_norm_linear", norm_and_project)
    monkeypatch.setattr(theirs, "swish", F.silu)
    torch.manual_seed(0)
    attention: Any = theirs.HGRN2Attention(hidden_size=32, expand_ratio=16, layer_idx=layer)
    mixer: Any = create_mixer("hgrn2", 32, heads=2, chunk_size=16, layer=layer, n_layers=4)
    mixer.q_proj.load_state_dict(attention.q_proj.state_dict())
    mixer.v_proj.load_state_dict(attention.i_proj.state_dict())
    mixer.decay_proj.load_state_dict(attention.f_proj.state_dict())
    mixer.o_proj.load_state_dict(attention.o_proj.state_dict())
    bounds = torch.zeros(4, 32).softmax(0).cumsum(0)
    x = torch.randn(2, 50, 32)
    with torch.no_grad():
        expected = attention(x, lower_bound=(bounds - bounds[0])[layer])[0]
        oracle("hgrn2", "fla-core HGRN2Attention on naive_recurrent_gla", mixer(x)[0], expected, limit=1e-5)


def test_key_and_decay_add_up_to_1() -> None:
    mixer: Any = create_mixer("hgrn2", 32, layer=1, n_layers=4).double()
    raw = torch.linspace(-50, 50, 32, dtype=torch.float64)
    keys, log_decay = mixer.gates(raw)
    torch.testing.assert_close(keys + log_decay.exp(), torch.ones_like(raw), rtol=1e-6, atol=0)
    assert log_decay.exp().min() >= 0.25 - 1e-6
