"""One backbone that hosts any mixer."""

from .backbone import ModelState
from .config import ModelConfig
from .counting import count_flops, count_parameters, resolve_d_ff
from .language_model import LanguageModel
from .layout import Layout, LayoutError, parse_layout
from .presets import PAPER_LAYOUTS, PRESETS, preset_config

__all__ = [
    "PAPER_LAYOUTS",
    "PRESETS",
    "LanguageModel",
    "Layout",
    "LayoutError",
    "ModelConfig",
    "ModelState",
    "count_flops",
    "count_parameters",
    "parse_layout",
    "preset_config",
    "resolve_d_ff",
]
