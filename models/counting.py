"""Counting parameters and FLOPs, and choosing the feed-forward width that makes two models equal in them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..mixers.limits import MOST_PARAMETERS
from .backbone import Backbone, SwiGLU
from .config import ModelConfig

MATCH_TOLERANCE = 0.01
MINIMUM_D_FF = 8
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Numbers of parameters by part; counted on the meta device, so no memory is used.

    `total` is the sum of `embedding` (also the output layer), `mixers`, `memories` (all that a layout inserts,
    feed-forwards included), `feed_forward` (the SwiGLUs) and `norms` (of the backbone; a mixer's own count as mixer).
    A memory's initial content counts only where it is learned.
    Raises `ValueError` for a model of more parameters than any machine could hold, see `limits`.
    """
    return _count_parameters(config, resolve_d_ff(config))


def count_flops(config: ModelConfig, time: int) -> int:
    """FLOPs of one forward call over one sequence of `time` tokens, logits included, a multiply-add being two.

    Measured with `torch.utils.flop_counter` on a float32 model on the CPU. Counted are matrix products and
    convolutions; attention as two dense products over the scores it computes, those masked by causality included. Not
    counted are elementwise operations, norms, softmax, top-k, sorting, gathers and scatters (a sparse memory's update).
    Raises `ValueError` if time is below 1.
    """
    return _count_flops(config, resolve_d_ff(config), time)


def flop_counter() -> FlopCounterMode:
    """A context that counts the FLOPs of what runs in it, see `count_flops`."""
    # not every torch counts its fused attention on the CPU by itself
    return FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops})


def resolve_d_ff(config: ModelConfig) -> int:
    """The feed-forward width of a model, `config.match` carried out.

    Raises `ValueError` if no width of at least 8 comes within 1 % of the target.
    """
    if config.match is None or config.match_layout is None:
        return config.base_d_ff
    base = config.base_d_ff
    own = dataclasses.replace(config, match=None, match_layout=None)
    other = dataclasses.replace(own, layout=config.match_layout)
    with torch.device("meta"):
        n_swiglu = sum(isinstance(block.feed_forward, SwiGLU) for block in Backbone(own, base).layers)
    if config.match == "params":
        target, at_base = _count_parameters(other, base)["total"], _count_parameters(own, base)["total"]
        slope = 3 * config.d_model * n_swiglu
    else:
        target, at_base = _count_flops(other, base, config.match_time), _count_flops(own, base, config.match_time)
        slope = 2 * config.match_time * 3 * config.d_model * n_swiglu
    exact = base + (target - at_base) / slope if slope else base
    # multiples of 8 keep the matrix products fast; a small model may need the exact width
    for d_ff in (round(exact / 8) * 8, round(exact)):
        if d_ff >= MINIMUM_D_FF and abs(at_base + slope * (d_ff - base) - target) <= MATCH_TOLERANCE * target:
            return d_ff
    unit = "parameters" if config.match == "params" else "FLOPs"
    raise ValueError(
        f"the layout {config.layout!r} has {at_base:,} {unit} with feed-forwards of width {base}, "
        f"{config.match_layout!r} has {target:,}: no width of at least {MINIMUM_D_FF} brings them within "
        f"{MATCH_TOLERANCE:.0%} (it would take {exact:.1f}); "
        "change d_ff or the options of the mixers, or leave match out"
    )


def _count_parameters(config: ModelConfig, d_ff: int) -> dict[str, int]:
    try:
        with torch.device("meta"):
            model = Backbone(config, d_ff)
    except RuntimeError as error:  # the bytes of a tensor do not fit into 64 bits
        raise ValueError(f"the model is too large to be built: {error}") from None
    parts = dict.fromkeys(("total", "embedding", "mixers", "memories", "feed_forward", "norms"), 0)
    for name, parameter in model.named_parameters():
        parts["total"] += parameter.numel()
        parts[_part(model, name)] += parameter.numel()
    if parts["total"] > MOST_PARAMETERS:
        raise ValueError(
            f"the model has {parts['total']:,} parameters, {4 * parts['total'] / 1e12:,.0f} TB in float32, and no more "
            f"than {MOST_PARAMETERS:,} are taken; make it smaller"
        )
    return parts


def _part(model: Backbone, name: str) -> str:
    if name.startswith("embedding."):
        return "embedding"
    kind = name.split(".")[2] if name.startswith("layers.") else "norm"
    if kind == "feed_forward":
        block = model.layers[int(name.split(".")[1])]
        return "feed_forward" if isinstance(block.feed_forward, SwiGLU) else "memories"
    return {"mixer": "mixers", "memory": "memories"}.get(kind, "norms")


def _count_flops(config: ModelConfig, d_ff: int, time: int) -> int:
    if time < 1:
        raise ValueError(f"time must be at least 1, got {time}")
    needed = 4 * _count_parameters(config, d_ff)["total"]
    if needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(
            f"FLOPs are counted by running the model on the CPU, for which {needed / 1e9:,.0f} GB of parameters are "
            f"too many here ({there / 1e9:,.0f} GB of memory)"
        )
    counter = flop_counter()
    with torch.device("cpu"), torch.no_grad():
        model = Backbone(config, d_ff)
        tokens = torch.zeros(1, time, dtype=torch.long)
        with counter:
            model(tokens)
    return counter.get_total_flops()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **named: Any) -> int:
    """Scores and weighted sums, for every query head: torch's own formula refuses grouped queries in some versions."""
    batch, heads, queries, d_k = query
    return 2 * batch * heads * queries * key[2] * (d_k + value[3])
