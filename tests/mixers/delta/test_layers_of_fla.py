"""Delta-rule mixers against the layers of fla with copied weights, on their own naive functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.layers import unit_length
from torch import Tensor, nn
from torch.nn import functional as F

D_MODEL, HEADS, D_HEAD, TIME = 32, 2, 16, 50


class Convolution(nn.Module):
    """fla's short convolution, whose kernel needs a GPU."""

    def __init__(self, hidden_size: int, kernel_size: int, bias: bool = False, activation: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden_size, 1, kernel_size) * kernel_size**-0.5)
        self.activation = activation

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        padded = F.pad(x.transpose(1, 2), (self.weight.shape[2] - 1, 0))
        y = F.conv1d(padded, self.weight, groups=len(self.weight)).transpose(1, 2)
        return F.silu(y) if self.activation == "silu" else y, None


class GatedNorm(nn.Module):
    """fla's fused norm and gate."""

    def __init__(self, size: int, activation: str = "swish", eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(size) + 0.5), eps
        self.gate = torch.sigmoid if activation == "sigmoid" else F.silu

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return y if gate is None else y * self.gate(gate)


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, module: Any, **kernels: Callable[..., Any]) -> None:
    """Put plain functions in the place of what needs a GPU; both modes run the same."""
    monkeypatch.setattr(module, "ShortConvolution", Convolution)
    monkeypatch.setattr(module, "FusedRMSNormGated", GatedNorm)
    if hasattr(module, "RMSNorm"):
        monkeypatch.setattr(module, "RMSNorm", GatedNorm)
    for name, function in kernels.items():
        for mode in ("chunk", "fused_recurrent"):
            monkeypatch.setattr(module, f"{mode}_{name}", function)


def weights_of(layer: Any, **more: Tensor) -> dict[str, Tensor]:
    """What all of these layers have, by our names."""
    parts = "qkv"
    found = {
        "qkv_proj.weight": torch.cat([getattr(layer, f"{p}_proj").weight for p in parts]),
        "conv.weight": torch.cat([getattr(layer, f"{p}_conv1d").weight.squeeze(1) for p in parts]),
        "output.o_norm.weight": layer.o_norm.weight,
        "output.o_proj.weight": layer.o_proj.weight,
    }
    gate = getattr(layer, "g_proj", None)
    if isinstance(gate, nn.Sequential):
        found |= {"output.g_proj.down.weight": gate[0].weight, "output.g_proj.up.weight": gate[1].weight}
        found["output.g_proj.up.bias"] = gate[1].bias
    elif gate is not None:
        found["output.g_proj.weight"] = gate.weight
    return found | more


def decay_of(layer: Any, proj: Any = None, suffix: str = "", name: str = "decay") -> dict[str, Tensor]:
    """A_log, dt_bias and the map before them."""
    found = {f"{name}.{p}": getattr(layer, f"{p}{suffix}") for p in ("A_log", "dt_bias")}
    if isinstance(proj, nn.Sequential):
        return found | {f"{name}.proj.down.weight": proj[0].weight, f"{name}.proj.up.weight": proj[1].weight}
    return found | {f"{name}.proj.weight": proj.weight}


@torch.no_grad()
def compare(oracle: Any, name: str, layer: Any, weights: dict[str, Tensor], source: str, **options: Any) -> None:
    mixer = create_mixer(name, D_MODEL, heads=HEADS, d_head=D_HEAD, chunk_size=16, **options)
    mixer.load_state_dict(weights)
    x = torch.randn(2, TIME, D_MODEL)
    oracle(name, source, mixer(x)[0], layer.eval()(x)[0], limit=1e-5)


def test_deltanet(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fla.layers import delta_net as theirs
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    def rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **_: Any) -> tuple[Tensor, Any]:
        parts = (unit_length(q), unit_length(k), v, beta)
        o, state = delta_rule_recurrence(*(part.transpose(1, 2) for part in parts))
        return o.transpose(1, 2), state

    on_a_cpu(monkeypatch, theirs, delta_rule=rule)
    torch.manual_seed(0)
    layer = theirs.DeltaNet(hidden_size=D_MODEL, num_heads=HEADS, use_gate=True, allow_neg_eigval=True)
    weights = weights_of(layer, **{"beta_proj.weight": layer.b_proj.weight})
    options = {"output_gate": True, "negative_eigenvalues": True}
    compare(oracle, "deltanet", layer, weights, "fla-core DeltaNet on delta_rule_recurrence", **options)


def test_kimi_delta_attention(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fla.layers import kda as theirs
    from fla.ops.kda.gate import naive_kda_gate
    from fla.ops.kda.naive import naive_recurrent_kda

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, **_: Any) -> Any:
        decay = naive_kda_gate(g, A_log, dt_bias)
        return naive_recurrent_kda(unit_length(q), unit_length(k), v, decay, beta.sigmoid())

    on_a_cpu(monkeypatch, theirs, kda=rule)
    torch.manual_seed(0)
    layer = theirs.KimiDeltaAttention(hidden_size=D_MODEL, head_dim=D_HEAD, num_heads=HEADS)
    weights = weights_of(layer, **{"beta_proj.weight": layer.b_proj.weight}, **decay_of(layer, layer.f_proj))
    source = "fla-core KimiDeltaAttention on naive_recurrent_kda"
    compare(oracle, "kimi_delta_attention", layer, weights, source)


@pytest.mark.parametrize("correction", [1.0, 0.02])
def test_comba(oracle: Any, monkeypatch: pytest.MonkeyPatch, correction: float) -> None:
    """Their kernel gives p a length of 1, which cancels its factor; here p is over the length of k, as in the paper."""
    from fla.layers import comba as theirs
    from fla.ops.comba.naive import naive_recurrent_comba

    def rule(q: Tensor, k: Tensor, v: Tensor, p: Tensor, g: Tensor, beta: Tensor, **_: Any) -> Any:
        length = (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        return naive_recurrent_comba(unit_length(q), k / length, v, p / length, beta, g)

    on_a_cpu(monkeypatch, theirs, comba=rule)
    torch.manual_seed(0)
    sizes = {"hidden_size": D_MODEL, "head_dim": D_HEAD, "num_heads": HEADS, "expand_v": 1}
    layer = theirs.Comba(**sizes, correction_factor=correction)
    own = {"beta_proj.weight": layer.b_proj.weight, "inner_decay": layer.decay, "D": layer.D}
    weights = weights_of(layer, **own, **decay_of(layer, layer.a_proj))
    compare(oracle, "comba", layer, weights, "fla-core Comba on naive_recurrent_comba", correction=correction)


def test_gated_deltanet_2(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fla.layers import gdn2 as theirs
    from fla.ops.gdn2.naive import naive_recurrent_gdn2

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, **_: Any) -> Any:
        return naive_recurrent_gdn2(unit_length(q), unit_length(k), v, g, b, w)

    on_a_cpu(monkeypatch, theirs, gdn2=rule)
    torch.manual_seed(0)
    cls = next(value for name, value in vars(theirs).items() if name.startswith("GatedDeltaNet"))
    layer = cls(hidden_size=D_MODEL, head_dim=D_HEAD, num_heads=HEADS, allow_neg_eigval=True)
    own = {"erase_proj.weight": layer.b_proj.weight, "write_proj.weight": layer.w_proj.weight}
    weights = weights_of(layer, **own, **decay_of(layer, layer.f_proj))
    source = f"fla-core {cls.__name__} on naive_recurrent_gdn2"
    compare(oracle, "gated_deltanet_2", layer, weights, source, negative_eigenvalues=True)


@pytest.mark.parametrize("steps", [2, 3])
def test_gated_deltaproduct(oracle: Any, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    from fla.layers import gated_deltaproduct as theirs
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **_: Any) -> Any:
        k = unit_length(k)
        return naive_recurrent_gated_delta_product(
            unit_length(q), k, v, g, beta, scale=D_HEAD**-0.5, num_householder=steps
        )

    monkeypatch.setattr(theirs, "chunk_gated_delta_product", rule)
    monkeypatch.setattr(theirs, "ShortConvolution", Convolution)
    monkeypatch.setattr(theirs, "FusedRMSNormGated", GatedNorm)
    torch.manual_seed(0)
    sizes = {"hidden_size": D_MODEL, "head_dim": D_HEAD, "num_heads": HEADS, "expand_v": 1}
    layer = theirs.GatedDeltaProduct(**sizes, num_householder=steps, allow_neg_eigval=True)
    weights = weights_of(layer, **{"beta_proj.weight": layer.b_proj.weight}, **decay_of(layer, layer.a_proj))
    mixer = create_mixer("gated_deltaproduct", D_MODEL, heads=HEADS, d_head=D_HEAD, steps=steps, chunk_size=16)
    mixer.load_state_dict(weights)
    x = torch.randn(2, 70, D_MODEL)  # their shorter texts take a kernel that has no naive function
    with torch.no_grad():
        source = "fla-core GatedDeltaProduct on naive_recurrent_gated_delta_product"
        oracle("gated_deltaproduct", source, mixer(x)[0], layer.eval()(x)[0], limit=1e-5)


def test_preconditioned_deltanet(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fla.layers import precond_gated_deltanet as theirs
    from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule

    on_a_cpu(monkeypatch, theirs)
    torch.manual_seed(0)
    sizes = {"hidden_size": D_MODEL, "head_dim": D_HEAD, "num_heads": HEADS, "expand_v": 1}
    layer = theirs.PrecondGatedDeltaNet(**sizes, mode="naive").train()
    monkeypatch.setattr(
        theirs, "naive_recurrent_precond_gated_delta_rule", naive_recurrent_precond_gated_delta_rule, raising=False
    )
    own = {
        "beta_proj.weight": layer.b_proj.weight,
        "usage_beta_proj.weight": layer.b_atk_proj.weight,
        "log_centre": layer.log_atk_scale,
    }
    decays = decay_of(layer, layer.a_proj) | decay_of(layer, layer.a_atk_proj, "_atk", "usage_decay")
    mixer = create_mixer("preconditioned_deltanet", D_MODEL, heads=HEADS, d_head=D_HEAD, chunk_size=16)
    mixer.load_state_dict(weights_of(layer, **own, **decays))
    x = torch.randn(2, 70, D_MODEL)
    with torch.no_grad():
        source = "fla-core PrecondGatedDeltaNet on naive_recurrent_precond_gated_delta_rule"
        oracle("preconditioned_deltanet", source, mixer(x)[0], layer(x)[0], limit=1e-5)
