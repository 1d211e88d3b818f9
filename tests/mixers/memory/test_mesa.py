"""The Mesa layer against that of flash-linear-attention."""

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, D_HEAD = 32, 2, 16


class Convolution(nn.Module):
    """Theirs needs Triton: the same weights in PyTorch's convolution."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.weight = theirs.weight

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        y = F.conv1d(F.pad(x.mT, (3, 0)), self.weight, groups=x.shape[2])
        return F.silu(y.mT), None


def fla_layer(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Their layer with what needs Triton replaced: convolutions, norm, and the op by their naive one."""
    from fla.layers import mesa_net
    from fla.ops.mesa_net.naive import naive_mesa_net_exact

    def naive(q: Tensor, k: Tensor, *, h_kk_init: None, h_kv_init: None, **given: Any) -> tuple[Tensor, None, None]:
        given = {name: given[name] for name in ("v", "g", "lamb", "beta")}
        output, *_ = naive_mesa_net_exact(F.normalize(q, dim=-1), F.normalize(k, dim=-1), **given)
        return output, None, None

    monkeypatch.setattr(mesa_net, "chunk_mesa_net", naive)
    layer = mesa_net.MesaNet(hidden_size=WIDTH, num_heads=HEADS, head_dim=D_HEAD)
    layer.q_conv1d, layer.k_conv1d = Convolution(layer.q_conv1d), Convolution(layer.k_conv1d)
    norm = nn.RMSNorm(D_HEAD, eps=1e-5)
    norm.weight = layer.o_norm.weight
    layer.o_norm = norm
    return layer


def test_the_layer_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs, ours = fla_layer(monkeypatch), create_mixer("mesa", WIDTH, heads=HEADS, d_head=D_HEAD)
    torch.testing.assert_close(ours.ridge.flatten(), theirs.lambda_params)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
        ours.qkv_proj.weight.copy_(torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]))
        ours.conv.weight.copy_(torch.cat([theirs.q_conv1d.weight, theirs.k_conv1d.weight]).squeeze(1))
        ours.decay_proj.load_state_dict(theirs.a_proj.state_dict())
        ours.beta_proj.load_state_dict(theirs.b_proj.state_dict())
        ours.ridge.copy_(theirs.lambda_params.view_as(ours.ridge))
        ours.output.o_norm.weight.copy_(theirs.o_norm.weight)
        ours.output.o_proj.load_state_dict(theirs.o_proj.state_dict())
        x = torch.randn(2, 40, WIDTH)
        oracle("mesa", "fla-core layers.MesaNet", ours(x)[0], theirs(x)[0], limit=1e-4)


def test_ridge_starts_at_one_and_stays_above_its_floor() -> None:
    mixer = create_mixer("mesa", WIDTH, heads=HEADS, ridge_floor=0.5)
    assert (F.softplus(mixer.ridge) + 0.5).flatten().tolist() == pytest.approx([1.0] * WIDTH)
    with pytest.raises(ValueError, match="ridge_floor must be a finite number above 0 and below 1"):
        create_mixer("mesa", WIDTH, ridge_floor=1.0)
