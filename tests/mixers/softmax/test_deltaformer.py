"""DeltaFormer against the layer of flash-linear-attention, with copied weights; its blocks against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.layers import apply_rotary, rotary_angles
from mixerzoo.mixers.ops.delta_attention import new_values


def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layer on a CPU: their own naive function for their kernel, our rotary embedding for theirs."""
    from fla.layers import deltaformer as theirs
    from fla.ops.deltaformer.naive import naive_deltaformer_attn

    class Rotary(torch.nn.Module):
        def forward(self, q: Any, k: Any, **_: Any) -> Any:
            angles = rotary_angles(0, q.shape[1], q.shape[3], 10_000.0, q.device)
            return apply_rotary(q, angles), apply_rotary(k, angles)

    def attend(*, q: Any, k: Any, v: Any, beta: Any, **_: Any) -> Any:
        return naive_deltaformer_attn(q, k, v, beta)

    monkeypatch.setattr(theirs, "deltaformer_attn", attend)
    torch.manual_seed(0)
    layer: Any = theirs.DeltaFormerAttention(hidden_size=32, num_heads=2, layer_idx=0)
    layer.rotary = Rotary()
    mixer = create_mixer("deltaformer", 32, heads=2, probe="queries")
    mixer.load_state_dict(
        {
            "qkv_proj.weight": torch.cat([p.weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)]),
            "beta_proj.weight": layer.b_proj.weight,
            "beta_proj.bias": layer.b_proj.bias,
            "o_proj.weight": layer.o_proj.weight,
        }
    )
    x = torch.randn(2, 50, 32)
    oracle("deltaformer", "fla-core DeltaFormerAttention on its naive function", mixer(x)[0], layer(x)[0], limit=2e-6)


@pytest.mark.parametrize(("time", "key_time"), [(300, 300), (1, 1), (1, 5), (150, 190)])
def test_blocks_are_the_definition(time: int, key_time: int) -> None:
    torch.manual_seed(0)
    sizes = ((time, 2, 8), (key_time, 2, 8), (time, 2, 6), (time, 2), (key_time - time, 2, 6))
    inputs = [torch.randn(2, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    found = []
    for backend in ("reference", "blockwise"):
        *given, past = inputs
        u = new_values(*given, past=past, backend=backend)
        gradients = torch.autograd.grad(u.square().sum(), inputs, allow_unused=True, materialize_grads=True)
        found.append((u, *gradients))
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_what_does_not_fit() -> None:
    q, beta = torch.randn(1, 4, 2, 8), torch.ones(1, 4, 2)
    with pytest.raises(ValueError, match=r"past must be .* = \[1, 3, 2, 8\], got \[1, 2, 2, 8\]"):
        new_values(q, torch.randn(1, 7, 2, 8), q, beta, past=torch.randn(1, 2, 2, 8))
    with pytest.raises(ValueError, match=r"beta must be .* \[1, 4, 2\], got \[1, 4\]"):
        new_values(q, q, q, beta[..., 0])
    with pytest.raises(ValueError, match="probe='queries' needs kv_heads = heads = 4, got 2"):
        create_mixer("deltaformer", 32, heads=4, kv_heads=2, probe="queries")
