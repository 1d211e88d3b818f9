"""Layers of flash-linear-attention as mixers. Nothing of it is imported here: a layer is known by its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..interface import Mixer
from .building import build, convert, require, require_no_bias, require_swish, with_eps
from .mamba import mamba, mamba2


def from_fla(layer: nn.Module) -> Mixer:
    """The mixer that computes what a layer of flash-linear-attention does, with copies of its weights.

    layer: one of `fla.layers`, what stands as `attn` or `mixer` in its models. Known are Attention, LinearAttention
    (with elu + 1, or the identity), MultiScaleRetention, GatedLinearAttention, HGRN2Attention, GatedDeltaNet, Mamba,
    Mamba2, Mamba3, RWKV6Attention and RWKV7Attention. It may have been made on any device; its kernels are not called.
    The mixer has the layer's dtype and device, and its training mode. Keys that several value heads share are
    repeated, so that the result is the same but is trained apart.
    The epsilon of a norm is taken over too; it is no option, so that a `state_dict` does not carry it.
    HGRN2 and RWKV-7 are first layers only: the bound of the decay, and the values of the first layer, come to later
    ones from the model around them.
    Raises `ValueError` for another class, or an option of the layer that the mixer does not have, naming it.
    """
    return convert(layer, _CONVERTERS, "flash-linear-attention")


def _projections(layer: Any) -> dict[str, Tensor]:
    return {"qkv_proj.weight": torch.cat([p.weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)])}


def _gated_output(layer: Any, norm: nn.Module) -> dict[str, Any]:
    """Weights of a `GatedOutput`."""
    require(layer, norm, elementwise_affine=True, bias=None)
    return {
        "output.g_proj.weight": layer.g_proj.weight,
        "output.o_norm.weight": norm.weight,
        "output.o_proj.weight": layer.o_proj.weight,
    }


def _attention(layer: Any) -> Mixer:
    require_no_bias(layer, "q_proj", "k_proj", "v_proj")
    weights = {**_projections(layer), "o_proj.weight": layer.o_proj.weight}
    if layer.qk_norm:
        weights |= {f"{name}.weight": getattr(layer, name).weight for name in ("q_norm", "k_norm")}
    mixer = build(
        "softmax_attention" if layer.window_size is None else "sliding_window_attention",
        layer.hidden_size,
        weights,
        heads=layer.num_heads,
        kv_heads=layer.num_kv_heads,
        d_head=layer.head_dim,
        rope_theta=float(layer.rotary.base),
        qk_norm=layer.qk_norm,
        **({} if layer.window_size is None else {"window": layer.window_size}),
    )
    return with_eps(mixer, layer.q_norm.eps, "q_norm", "k_norm") if layer.qk_norm else mixer


def _linear_attention(layer: Any) -> Mixer:
    features = type(layer.feature_map_q).__name__, getattr(layer.feature_map_q, "__name__", "")
    normed = not isinstance(layer.norm, nn.Identity)
    require(layer, num_kv_groups=1, norm_q=False, norm_k=False, head_k_dim=layer.head_v_dim)
    if "elu_p1" not in features and "Identity" not in features:
        raise ValueError(f"LinearAttention with the feature map {layer.feature_map_q!r} has no counterpart here")
    require(layer, do_feature_map_norm=not normed)  # ours has either the normaliser or the norm
    weights = {**_projections(layer), "o_proj.weight": layer.o_proj.weight}
    mixer = build(
        "linear_attention",
        layer.hidden_size,
        weights | ({"o_norm.weight": layer.norm.weight} if normed else {}),
        heads=layer.num_heads,
        d_head=layer.head_v_dim,
        feature_map="elu" if "elu_p1" in features else "identity",
        normaliser=not normed,
    )
    # theirs divides what is read by sqrt(head_k_dim) before the norm, which tells by the epsilon only
    return with_eps(mixer, layer.norm.eps * layer.head_k_dim, "o_norm") if normed else mixer


def _retention(layer: Any) -> Mixer:
    norm = _swish_norm(layer)
    mixer = build(
        "retention",
        layer.hidden_size,
        {**_projections(layer), **_gated_output(layer, norm)},
        heads=layer.num_heads,
        d_head=layer.head_k_dim,
        expand_v=layer.head_v_dim / layer.head_k_dim,
        rope_theta=float(layer.rotary.base),
    )
    return with_eps(mixer, norm.eps, "output.o_norm")


def _gla(layer: Any) -> Mixer:
    norm = _swish_norm(layer)
    require(layer, clamp_min=None)
    weights = {
        **_projections(layer),
        **_gated_output(layer, norm),
        "decay_proj.down.weight": layer.gk_proj[0].weight,
        "decay_proj.up.weight": layer.gk_proj[1].weight,
        "decay_proj.up.bias": layer.gk_proj[1].bias,
    }
    mixer = build(
        "gla",
        layer.hidden_size,
        weights,
        heads=layer.num_heads,
        d_head=layer.head_k_dim,
        expand_v=layer.head_v_dim / layer.head_k_dim,
        gate_rank=layer.gk_proj[0].out_features,
        gate_temperature=float(layer.gate_logit_normalizer),
    )
    return with_eps(mixer, norm.eps, "output.o_norm")


def _swish_norm(layer: Any) -> Any:
    """The norm of a layer of retention's or GLA's shape whose options ours has."""
    require(layer, num_kv_groups=1, feature_map_fn=None, use_short_conv=False, use_output_gate=True)
    if layer.fuse_norm_and_gate:
        return layer.g_norm_swish_gate
    require_swish(layer, "gate_fn")
    return layer.g_norm


def _hgrn2(layer: Any) -> Mixer:
    require(layer, use_short_conv=False, head_f_dim=layer.head_i_dim)
    require(layer, layer.g_norm, elementwise_affine=True, bias=None)
    _require_first(layer)
    weights = {
        "q_proj.weight": layer.q_proj.weight,
        "v_proj.weight": layer.i_proj.weight,
        "decay_proj.weight": layer.f_proj.weight,
        "o_norm.weight": layer.g_norm.weight,
        "o_proj.weight": layer.o_proj.weight,
    }
    # not that of the norm: the layer hands its weight alone to a kernel with this default
    return with_eps(build("hgrn2", layer.hidden_size, weights, heads=layer.num_heads), 1e-5, "o_norm")


def _gated_deltanet(layer: Any) -> Mixer:
    require(layer, use_short_conv=True, conv_bias=False, allow_neg_eigval=False)
    shared = layer.num_v_heads // layer.num_heads

    def repeated(weight: Tensor) -> Tensor:
        """The rows of a key head once for each value head that it serves."""
        return weight.unflatten(0, (layer.num_heads, -1)).repeat_interleave(shared, dim=0).flatten(0, 1)

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([repeated(q), repeated(k), v])

    convolutions = (conv.weight.squeeze(1) for conv in (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d))
    weights = {
        "qkv_proj.weight": joined(layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight),
        "conv.weight": joined(*convolutions),
        "beta_proj.weight": layer.b_proj.weight,
        "decay_proj.weight": layer.a_proj.weight,
        "A_log": layer.A_log,
        "dt_bias": layer.dt_bias,
        "output.o_norm.weight": layer.o_norm.weight,
        "output.o_proj.weight": layer.o_proj.weight,
    }
    if layer.use_gate:
        if layer.o_norm.activation not in ("swish", "silu"):
            given = layer.o_norm.activation
            raise ValueError(
                f"GatedDeltaNet with output_gate_activation={given!r} has no counterpart here, only 'silu'"
            )
        weights["output.g_proj.weight"] = layer.g_proj.weight
    mixer = build(
        "gated_deltanet",
        layer.hidden_size,
        weights,
        heads=layer.num_v_heads,
        d_head=layer.head_k_dim,
        expand_v=layer.head_v_dim / layer.head_k_dim,
        conv_size=layer.conv_size,
        output_gate=layer.use_gate,
    )
    return with_eps(mixer, layer.o_norm.eps, "output.o_norm")


def _mamba(layer: Any) -> Mixer:
    return mamba(layer, layer.dt_rank)


def _mamba2(layer: Any) -> Mixer:
    require(layer, rmsnorm=True, norm_before_gate=False, D_has_hdim=False, dt_limit=(0.0, float("inf")))
    return mamba2(layer, layer.norm_eps)


def _mamba3(layer: Any) -> Mixer:
    require_no_bias(layer, "in_proj", "out_proj")
    # the kernel for several inputs pairs channels i and i + d_state / 2 where it turns them
    require(layer, is_mimo=False, is_outproj_norm=False, A_floor=1e-4)
    weights = {name.replace("out_proj", "o_proj"): parameter for name, parameter in layer.named_parameters()}
    mixer = build(
        "mamba3",
        layer.hidden_size,
        weights,
        expand=layer.expand,
        d_head=layer.head_dim,
        d_state=layer.ssm_state_size,
        groups=layer.n_groups,
        rope_fraction=layer.rope_fraction,
    )
    return with_eps(mixer, layer.norm_eps, "B_norm", "C_norm")


def _rwkv6(layer: Any) -> Mixer:
    require(layer, head_k_dim=layer.head_v_dim)
    require(layer, layer.g_norm, elementwise_affine=True)
    require_swish(layer, "gate_fn")
    rank, order = layer.proj_low_rank_dim, [1, 2, 3, 0, 4]  # theirs: r, w, k, v, g; ours: w, k, v, r, g
    down, up = layer.x_proj[0], layer.x_proj[2].weight
    weights = {
        "shift": torch.cat([down.mu[None], layer.x_bias[order]]),
        "shift_down.weight": down.linear.weight.unflatten(0, (5, rank))[order].flatten(0, 1),
        "shift_up": up.unflatten(1, (5, rank)).permute(1, 2, 0)[order].contiguous(),
        "decay_proj.down.weight": layer.w_proj.linear.lora[0].weight,
        "decay_proj.up.weight": layer.w_proj.linear.lora[2].weight,
        "decay_proj.up.bias": layer.w_proj.linear.lora[2].bias,
        "bonus": layer.bonus,
        "q_proj.weight": layer.r_proj.linear.weight,
        "k_proj.weight": layer.k_proj.linear.weight,
        "v_proj.weight": layer.v_proj.linear.weight,
        "g_proj.weight": layer.g_proj.linear.weight,
        **_head_norm(layer),
        "o_proj.weight": layer.o_proj.weight,
    }
    mixer = build(
        "rwkv6",
        layer.hidden_size,
        weights,
        heads=layer.num_heads,
        d_head=layer.head_k_dim,
        shift_rank=rank,
        decay_rank=layer.gate_low_rank_dim,
    )
    return with_eps(mixer, layer.g_norm.eps, "o_norm")


def _rwkv7(layer: Any) -> Mixer:
    require(layer, head_dim=layer.head_v_dim)
    _require_first(layer)
    decay, rate, gate = (lora.lora for lora in (layer.w_lora, layer.a_lora, layer.g_lora))
    require(layer, rate[0], out_features=decay[0].out_features)  # ours has one rank for both
    weights = {
        "shift": torch.cat([getattr(layer, f"x_{name}").flatten()[None] for name in "rwkvag"]),
        **{f"{name}.down.weight": lora[0].weight for name, lora in (("decay_proj", decay), ("rate_proj", rate))},
        **{f"{name}.up.weight": lora[2].weight for name, lora in (("decay_proj", decay), ("rate_proj", rate))},
        **{f"{name}.up.bias": lora[2].bias for name, lora in (("decay_proj", decay), ("rate_proj", rate))},
        "g_proj.down.weight": gate[0].weight,
        "g_proj.up.weight": gate[2].weight,
        "q_proj.weight": layer.r_proj.weight,
        "k_proj.weight": layer.k_proj.weight,
        "v_proj.weight": layer.v_proj.weight,
        "erased_key": layer.k_k,
        "rate_share": layer.k_a,
        "bonus": layer.r_k,
        **_head_norm(layer),
        "o_proj.weight": layer.o_proj.weight,
    }
    mixer = build(
        "rwkv7",
        layer.hidden_size,
        weights,
        heads=layer.num_heads,
        d_head=layer.head_dim,
        decay_rank=decay[0].out_features,
        gate_rank=gate[0].out_features,
    )
    return with_eps(mixer, layer.g_norm.eps, "o_norm")


def _head_norm(layer: Any) -> dict[str, Tensor]:
    norm = layer.g_norm
    return {f"o_norm.{name}": getattr(norm, name).view(layer.num_heads, -1) for name in ("weight", "bias")}


def _require_first(layer: Any) -> None:
    if layer.layer_idx:
        name = type(layer).__name__
        raise ValueError(
            f"{name} with layer_idx={layer.layer_idx} takes part of its input from the model around it; only a first "
            "layer has a counterpart here"
        )


_CONVERTERS = {
    "Attention": _attention,
    "LinearAttention": _linear_attention,
    "MultiScaleRetention": _retention,
    "GatedLinearAttention": _gla,
    "HGRN2Attention": _hgrn2,
    "GatedDeltaNet": _gated_deltanet,
    "Mamba": _mamba,
    "Mamba2": _mamba2,
    "Mamba3": _mamba3,
    "RWKV6Attention": _rwkv6,
    "RWKV7Attention": _rwkv7,
}
