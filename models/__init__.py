"""One backbone that hosts any mixer."""

from .backbone import ModelState
from .config import ModelConfig
from .counting import count_flops, count_parameters, resolve_d_ff
from .language_model import LanguageModel
from .layout import Layout, LayoutError, parse_layout
from .named_layouts import LAYOUTS, PAPER_LAYOUTS, NamedLayout
from .presets import PRESETS, preset_config

__all__ = [
    "LAYOUTS",
    "PAPER_LAYOUTS",
    "PRESETS",
    "LanguageModel",
    "Layout",
    "LayoutError",
    "ModelConfig",
    "ModelState",
    "NamedLayout",
    "count_flops",
    "count_parameters",
    "parse_layout",
    "preset_config",
    "resolve_d_ff",
]
