"""Mamba and Mamba-2, whose layers name their weights alike in both libraries."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..interface import Mixer
from .building import build, require, require_no_bias, with_eps


def mamba(layer: Any, dt_rank: int) -> Mixer:
    """The mixer of a layer of Mamba."""
    require_no_bias(layer, "in_proj", "out_proj")
    require(layer, use_conv_bias=True, activation="silu")
    weights = {
        **_weights(layer),
        "x_proj.weight": layer.x_proj.weight,
        "dt_proj.weight": layer.dt_proj.weight,
        "dt_proj.bias": layer.dt_proj.bias,
    }
    return build("mamba", layer.hidden_size, weights, dt_rank=dt_rank, **_options(layer))


def mamba2(layer: Any, eps: float) -> Mixer:
    """The mixer of a layer of Mamba-2. eps: of its norm."""
    require_no_bias(layer, "in_proj", "out_proj")
    require(layer, use_conv_bias=True, activation="silu")
    weights = {**_weights(layer), "dt_bias": layer.dt_bias, "o_norm.weight": layer.norm.weight}
    mixer = build("mamba2", layer.hidden_size, weights, d_head=layer.head_dim, groups=layer.n_groups, **_options(layer))
    return with_eps(mixer, eps, "o_norm")


def _weights(layer: Any) -> dict[str, Tensor]:
    return {
        "in_proj.weight": layer.in_proj.weight,
        "conv.weight": layer.conv1d.weight.squeeze(1),
        "conv.bias": layer.conv1d.bias,
        "A_log": layer.A_log,
        "D": layer.D,
        "o_proj.weight": layer.out_proj.weight,
    }


def _options(layer: Any) -> dict[str, int]:
    expand, rest = divmod(layer.intermediate_size, layer.hidden_size)
    if rest:
        name, inner, outer = type(layer).__name__, layer.intermediate_size, layer.hidden_size
        raise ValueError(f"{name} with intermediate_size={inner}, no multiple of {outer}, has no counterpart here")
    return {"expand": expand, "d_state": layer.ssm_state_size, "conv_size": layer.conv_kernel_size}
