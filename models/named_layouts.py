"""Layouts by name: those of published hybrid models, and all of the FwPKM paper.

A layout says which mixers stand in which order, at any width and depth: sizes such as heads and windows come from the
preset or the suite, and a note names the published ones that matter. What an architecture has around its mixers
(mixtures of experts, other norms, scales of the residual stream) is not part of a layout; every one of them stands in
the same backbone here.

YOCO (arXiv 2405.05254) is missing on purpose: all layers of its upper half read one cache of keys and values that is
computed once, from the output of the lower half. A layer of this backbone sees the residual stream and its own state
only, and with a cache per layer it would be another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedLayout:
    """line: the layout line that the name stands for. source: where it comes from. note: what it leaves to others."""

    line: str
    source: str
    note: str = ""


_HYBRIDS = {
    "samba": NamedLayout(
        "mamba, sliding_window_attention",
        "Ren et al. 2024, arXiv 2406.07522",
        "published with window 2048",
    ),
    "jamba": NamedLayout(
        "mamba*4, softmax_attention(positions='nope'), mamba*3",
        "Lieber et al. 2024, arXiv 2403.19887",
        "one attention in eight layers, without positions; its mixture of experts in every second layer and the norms "
        "inside Mamba are not here",
    ),
    "griffin": NamedLayout(
        "rg_lru*2, sliding_window_attention(kv_heads=1)",
        "De et al. 2024, arXiv 2402.19427",
        "multi-query attention; published with window 1024 and heads of 128",
    ),
    "qwen3_next": NamedLayout(
        "gated_deltanet*3, gated_attention",
        "Qwen team 2025, Qwen3-Next-80B-A3B",
        "its mixture of experts is not here; published with two heads of values for each of keys in the delta rule, "
        "and a quarter of each attention head turned by RoPE",
    ),
    "kimi_linear": NamedLayout(
        "kimi_delta_attention*3, multi_head_latent_attention(positions='nope')",
        "Kimi team 2025, arXiv 2510.26692",
        "latent attention without positions; its mixture of experts is not here",
    ),
}

# The token mixers of the FwPKM paper's main experiments: Gated DeltaNet, alone and with every fourth layer an
# attention, and full attention. (Its "pSWA" models have the layouts `fa`: they restrict it in training only.)
_PAPER_MIXERS = {
    "gdn": "gated_deltanet",
    "swa_interleave": "gated_deltanet*3, sliding_window_attention",
    "fa_interleave": "gated_deltanet*3, softmax_attention",
    "fa": "softmax_attention",
}
_PAPER_MEMORIES = {
    "pkm2_6_10": "pkm@2,6,10",
    "fwpkm2_6_10": "fwpkm@2,6,10",
    "pkm6-fwpkm2_10": "pkm@6 + fwpkm@2,10",
    "fwmlp2_6_10": "fwmlp@2,6,10",
}
# appendix D: one thing changed in the FwPKM layers of `swa_interleave-pkm6-fwpkm2_10`
_PAPER_ABLATIONS = {
    "h1k32": "top_k=32",
    "h4k8": "heads=4",
    "lahd0": "lookahead=0",
    "no_addr_loss": "key_objective='memory'",
    "nog": "gate=False",
    "nowg": "gated_loss=False",
    "notm": "value_norm='raw'",
}

PAPER_LAYOUTS: Mapping[str, str] = {
    **_PAPER_MIXERS,
    **{
        f"{mixers}-{memories}": f"{_PAPER_MIXERS[mixers]} | {_PAPER_MEMORIES[memories]}"
        for mixers in _PAPER_MIXERS
        for memories in _PAPER_MEMORIES
    },
    **{
        f"swa_interleave-pkm6-fwpkm2_10-{name}": f"{_PAPER_MIXERS['swa_interleave']} | pkm@6 + fwpkm({option})@2,10"
        for name, option in _PAPER_ABLATIONS.items()
    },
    "lact-c512w2048": "lact(chunk_size=512, window=2048)",
}
"""Every main, baseline and ablation layout of the FwPKM paper, for `paper-112m`, under the names of the released
configurations (`cfgs/model_config/` of SakanaAI/fast-weight-product-key-memory, without the prefix `l12-`)."""

LAYOUTS: Mapping[str, NamedLayout] = {
    **_HYBRIDS,
    **{
        name: NamedLayout(line, "Zhao & Jones 2026, arXiv 2601.00671", "for the preset paper-112m, 12 layers")
        for name, line in PAPER_LAYOUTS.items()
    },
}
"""Every layout that has a name. Wherever a layout line is read, its name may stand for it."""
