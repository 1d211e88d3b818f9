"""Models by name: sizes that everybody uses, and the layouts of the FwPKM paper."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .config import ModelConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "nano": {"d_model": 64, "n_layers": 2, "vocab_size": 512},
}
PAPER_LAYOUTS: Mapping[str, str] = {}


def preset_config(name: str, layout: str, **changes: Any) -> ModelConfig:
    """The preset `name` with the layout line `layout`.

    changes: settings of `ModelConfig` that differ from the preset; `mixer_defaults` are merged, option by option.
    Raises `ValueError` for an unknown preset or setting, `LayoutError` for a layout line that does not parse.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown preset {name!r}; {hint}there are {', '.join(PRESETS)}")
    preset = dict(PRESETS[name])
    defaults = {mixer: dict(options) for mixer, options in preset.pop("mixer_defaults", {}).items()}
    for mixer, options in changes.pop("mixer_defaults", {}).items():
        defaults[mixer] = {**defaults.get(mixer, {}), **options}
    return ModelConfig.from_dict({**preset, "layout": layout, "mixer_defaults": defaults, **changes})
