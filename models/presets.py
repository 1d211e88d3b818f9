"""Models by name: sizes with fitting options for every mixer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .config import ModelConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # for tests and for a CPU
    "nano": {
        "d_model": 64,
        "n_layers": 2,
        "vocab_size": 512,
        "mixer_defaults": {
            "softmax_attention": {"heads": 4},
            "sliding_window_attention": {"heads": 4, "window": 32},
            "linear_attention": {"heads": 4},
            "gated_deltanet": {"heads": 4},
            "ttt_linear": {"heads": 4},
            "fwpkm": {"n_subkeys": 32, "d_k": 64, "d_v": 64, "top_k": 8, "chunk_size": 64},
            "pkm": {"n_subkeys": 32, "heads": 2, "top_k": 8, "d_k": 64},
            "fwmlp": {"d_k": 64, "d_v": 64, "d_hidden": 192, "chunk_size": 64},
        },
    },
    "mini": {
        "d_model": 256,
        "n_layers": 4,
        "vocab_size": 4096,
        "mixer_defaults": {
            "softmax_attention": {"heads": 4},
            "sliding_window_attention": {"heads": 4, "window": 128},
            "linear_attention": {"heads": 4},
            "gated_deltanet": {"heads": 4},
            "ttt_linear": {"heads": 4},
            "fwpkm": {"n_subkeys": 128, "d_k": 256, "d_v": 256, "top_k": 8, "chunk_size": 128},
            "pkm": {"n_subkeys": 128, "heads": 4, "top_k": 16, "d_k": 128},
            "fwmlp": {"d_k": 256, "d_v": 256, "d_hidden": 768, "chunk_size": 128},
        },
    },
    # Zhao & Jones 2026 (arXiv 2601.00671), table 2 and the released configurations. Not theirs: no gate on the output
    # of the attention, RoPE turns all of a head instead of a quarter, and every sequence has a memory of its own
    # (theirs trained with scope="batch", boundary="drop")
    "paper-112m": {
        "d_model": 768,
        "n_layers": 12,
        "d_ff": 2304,
        "vocab_size": 32000,
        "mixer_defaults": {
            "softmax_attention": {"heads": 12, "kv_heads": 4, "d_head": 64, "qk_norm": True},
            "sliding_window_attention": {"heads": 12, "kv_heads": 4, "d_head": 64, "qk_norm": True, "window": 512},
            "linear_attention": {"heads": 12},
            "gated_deltanet": {"heads": 8, "d_head": 64, "conv_size": 4},
            "ttt_linear": {"heads": 12},
            "fwpkm": {"n_subkeys": 512, "d_k": 512, "d_v": 512, "heads": 1, "top_k": 8, "chunk_size": 512},
            "pkm": {
                "n_subkeys": 512,
                "heads": 4,
                "top_k": 32,
                "d_k": 512,
                "d_v": 512,
                "gated": True,
                "value_learning_rate_scale": 1.0,
            },
            "fwmlp": {
                "d_k": 512,
                "d_v": 512,
                "d_hidden": 2304,
                "learning_rate": 0.1,
                "chunk_size": 512,
                "gated_loss": False,
            },
        },
    },
}
"""Sizes by name; options of `ModelConfig`, all but the layout."""


def preset_config(name: str, layout: str, **changes: Any) -> ModelConfig:
    """The preset `name` with the layout line `layout`, or the layout of that name.

    changes: settings of `ModelConfig` that differ from the preset; `mixer_defaults` are merged, option by option.
    Raises `ValueError` for an unknown preset or setting, `LayoutError` for a layout line that does not parse.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown preset {name!r}; {hint}there are {', '.join(PRESETS)}")
    preset = dict(PRESETS[name])
    defaults = {mixer: dict(options) for mixer, options in preset.pop("mixer_defaults").items()}
    for mixer, options in changes.pop("mixer_defaults", {}).items():
        defaults[mixer] = {**defaults.get(mixer, {}), **options}
    return ModelConfig.from_dict({**preset, "layout": layout, "mixer_defaults": defaults, **changes})
