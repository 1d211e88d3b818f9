"""Layers of Hugging Face's transformers as mixers. Nothing of it is imported here: a layer is known by its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..interface import Mixer
from .building import build, convert, require, require_no_bias, with_eps
from .mamba import mamba, mamba2


def from_huggingface(layer: nn.Module) -> Mixer:
    """The mixer that computes what a layer of transformers does, with copies of its weights.

    layer: what stands as `self_attn`, `linear_attn` or `mixer` in a model of transformers. Known are LlamaAttention,
    Qwen3Attention and MistralAttention (with and without a sliding window), MambaMixer, Mamba2Mixer, and of Qwen3-Next
    Qwen3NextAttention and Qwen3NextGatedDeltaNet.
    The mixer has the layer's dtype and device, and its training mode. Keys that several value heads share in
    Qwen3NextGatedDeltaNet are repeated, so that the result is the same but is trained apart.
    The epsilon of a norm is taken over too; it is no option, so that a `state_dict` does not carry it.
    Raises `ValueError` for another class, or an option of the layer that the mixer does not have, naming it.
    """
    return convert(layer, _CONVERTERS, "transformers")


def _llama(layer: Any) -> Mixer:
    return _attention(layer, window=None)


def _qwen3(layer: Any) -> Mixer:
    mixer = _attention(layer, window=layer.sliding_window, qk_norm=True)
    return with_eps(mixer, layer.q_norm.variance_epsilon, "q_norm", "k_norm")


def _mistral(layer: Any) -> Mixer:
    return _attention(layer, window=getattr(layer.config, "sliding_window", None))


def _attention(layer: Any, window: int | None, qk_norm: bool = False) -> Mixer:
    require_no_bias(layer, "q_proj", "k_proj", "v_proj", "o_proj")
    require(layer, scaling=layer.head_dim**-0.5, attention_dropout=0.0)
    weights = {
        "qkv_proj.weight": torch.cat([p.weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)]),
        "o_proj.weight": layer.o_proj.weight,
    }
    if qk_norm:
        weights |= {f"{name}.weight": getattr(layer, name).weight for name in ("q_norm", "k_norm")}
    kv_heads = layer.config.num_key_value_heads
    return build(
        "softmax_attention" if window is None else "sliding_window_attention",
        layer.config.hidden_size,
        weights,
        heads=kv_heads * layer.num_key_value_groups,
        kv_heads=kv_heads,
        d_head=layer.head_dim,
        qk_norm=qk_norm,
        rope_theta=float(_rope(layer)["rope_theta"]),
        **({} if window is None else {"window": window}),
    )


def _rope(layer: Any) -> dict[str, Any]:
    """Settings of the rotary embedding, the one kind of it that ours have."""
    rope = getattr(layer.config, "rope_parameters", None)
    if rope is None:  # before version 5
        rope = {"rope_theta": layer.config.rope_theta, **(layer.config.rope_scaling or {})}
    if (kind := rope.get("rope_type", "default")) != "default":
        name = type(layer).__name__
        raise ValueError(f"{name} with rope_type={kind!r} has no counterpart here, only with rope_type='default'")
    return rope


def _qwen3_next_attention(layer: Any) -> Mixer:
    require_no_bias(layer, "q_proj", "k_proj", "v_proj", "o_proj")
    require(layer, scaling=layer.head_dim**-0.5, attention_dropout=0.0)
    queries, gate = layer.q_proj.weight.unflatten(0, (-1, 2, layer.head_dim)).unbind(1)  # head by head
    weights = {
        "qkv_proj.weight": torch.cat([queries.flatten(0, 1), layer.k_proj.weight, layer.v_proj.weight]),
        "q_norm.weight": 1 + layer.q_norm.weight,
        "k_norm.weight": 1 + layer.k_norm.weight,
        "out.g_proj.weight": gate.flatten(0, 1),
        "out.o_proj.weight": layer.o_proj.weight,
    }
    kv_heads, rope = layer.config.num_key_value_heads, _rope(layer)
    mixer = build(
        "gated_attention",
        layer.config.hidden_size,
        weights,
        heads=kv_heads * layer.num_key_value_groups,
        kv_heads=kv_heads,
        d_head=layer.head_dim,
        qk_norm=True,
        rope_theta=float(rope["rope_theta"]),
        rotary_fraction=float(rope.get("partial_rotary_factor", 1.0)),
    )
    return with_eps(mixer, layer.q_norm.eps, "q_norm", "k_norm")


def _mamba(layer: Any) -> Mixer:
    return mamba(layer, layer.time_step_rank)


def _mamba2(layer: Any) -> Mixer:
    require(layer, time_step_limit=(0.0, float("inf")))
    return mamba2(layer, layer.norm.variance_epsilon)


def _qwen3_next_delta(layer: Any) -> Mixer:
    require(layer, activation="silu")
    shared, d_k, d_v = layer.num_v_heads // layer.num_k_heads, layer.head_k_dim, layer.head_v_dim

    def per_key_head(weight: Tensor, sizes: list[int]) -> list[Tensor]:
        """Parts of these sizes of every key head, each as rows of all heads."""
        return [part.flatten(0, 1) for part in weight.unflatten(0, (layer.num_k_heads, -1)).split(sizes, dim=1)]

    def repeated(weight: Tensor) -> Tensor:
        """The rows of a key head once for each value head that it serves."""
        return weight.unflatten(0, (-1, d_k)).repeat_interleave(shared, dim=0).flatten(0, 1)

    q, k, v, z = per_key_head(layer.in_proj_qkvz.weight, [d_k, d_k, shared * d_v, shared * d_v])
    beta, decay = per_key_head(layer.in_proj_ba.weight, [shared, shared])
    conv_q, conv_k, conv_v = layer.conv1d.weight.squeeze(1).split([layer.key_dim, layer.key_dim, layer.value_dim])
    weights = {
        "qkv_proj.weight": torch.cat([repeated(q), repeated(k), v]),
        "conv.weight": torch.cat([repeated(conv_q), repeated(conv_k), conv_v]),
        "beta_proj.weight": beta,
        "decay_proj.weight": decay,
        "A_log": layer.A_log,
        "dt_bias": layer.dt_bias,
        "output.g_proj.weight": z,
        "output.o_norm.weight": layer.norm.weight,
        "output.o_proj.weight": layer.out_proj.weight,
    }
    mixer = build(
        "gated_deltanet",
        layer.hidden_size,
        weights,
        heads=layer.num_v_heads,
        d_head=d_k,
        expand_v=d_v / d_k,
        conv_size=layer.conv_kernel_size,
    )
    return with_eps(mixer, layer.norm.variance_epsilon, "output.o_norm")


_CONVERTERS = {
    "LlamaAttention": _llama,
    "Qwen3Attention": _qwen3,
    "MistralAttention": _mistral,
    "MambaMixer": _mamba,
    "Mamba2Mixer": _mamba2,
    "Qwen3NextAttention": _qwen3_next_attention,
    "Qwen3NextGatedDeltaNet": _qwen3_next_delta,
}
