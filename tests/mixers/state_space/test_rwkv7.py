"""RWKV-7 against the layer of fla, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


def test_the_first_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layer on a CPU: with their own naive functions for their kernels. The first one has no value residual."""
    from fla.layers import rwkv7 as theirs
    from fla.modules.token_shift import token_shift_ref
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
    from fla.ops.rwkv7.fused_k_update import k_update_ref
    from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref

    def recurrent(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any, **_: Any) -> Any:
        q, k, v, a, b, w = (x.transpose(1, 2) for x in (r * r.shape[-1] ** 0.5, k, v, a, b, w))
        output, state = dplr_recurrence(q, k, v, a, b, w)
        return output.transpose(1, 2), state

    monkeypatch.setattr(theirs, "token_shift", lambda x, cu_seqlens, **_: (token_shift_ref(x), x[:, -1]))
    monkeypatch.setattr(theirs, "fused_addcmul_rwkv7", torch_addcmul_rwkv7)
    monkeypatch.setattr(theirs, "fused_k_rwkv7", k_update_ref)
    monkeypatch.setattr(theirs, "chunk_rwkv7", recurrent)
    monkeypatch.setattr(theirs, "gate_output_correction", gate_output_correction_ref)
    torch.manual_seed(0)
    ranks = {"decay_low_rank_dim": 8, "a_low_rank_dim": 8, "gate_low_rank_dim": 8}
    with pytest.warns(UserWarning, match="cross-checking"):
        layer: Any = theirs.RWKV7Attention(
            hidden_size=32, head_dim=16, layer_idx=0, num_hidden_layers=3, norm_eps=4e-5, **ranks
        )
    mixer: Any = create_mixer("rwkv7", 32, heads=2, chunk_size=16, n_layers=3, decay_rank=8, gate_rank=8)
    x = torch.randn(2, 50, 32)
    with torch.no_grad():
        for ours, wanted in pairs(mixer, layer):
            if ours.ndim == 1:  # all but matrices, which are random, start as in the authors' code
                torch.testing.assert_close(ours, wanted.view_as(ours))
            wanted.add_(0.2 * torch.randn_like(wanted))
            ours.copy_(wanted.view_as(ours))
        source = "fla-core RWKV7Attention on dplr_recurrence"
        oracle("rwkv7", source, mixer(x)[0], layer(x)[0], limit=1e-5)


def pairs(mixer: Any, layer: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Our parameters and theirs."""
    shares = [layer.x_r, layer.x_w, layer.x_k, layer.x_v, layer.x_a, layer.x_g]
    found = [*zip(mixer.shift.unbind(), shares)]
    found += [(mixer.erased_key, layer.k_k), (mixer.rate_share, layer.k_a), (mixer.bonus, layer.r_k)]
    found += [(mixer.o_norm.weight, layer.g_norm.weight), (mixer.o_norm.bias, layer.g_norm.bias)]
    for ours, theirs in (("q_proj", "r_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "o_proj")):
        found.append((getattr(mixer, ours).weight, getattr(layer, theirs).weight))
    for ours, theirs in (
        (mixer.decay_proj, layer.w_lora),
        (mixer.rate_proj, layer.a_lora),
        (mixer.g_proj, layer.g_lora),
    ):
        found += [(ours.down.weight, theirs.lora[0].weight), (ours.up.weight, theirs.lora[2].weight)]
        if ours.up.bias is not None:
            found.append((ours.up.bias, theirs.lora[2].bias))
    return found
