"""One backbone that hosts any mixer."""

from .backbone import ModelState
from .compiling import CompileMode, compile_totals, compiled, compiled_since
from .config import ModelConfig
from .counting import count_flops, count_parameters, flop_counter, resolve_d_ff
from .language_model import LanguageModel
from .layout import Layout, LayoutError, MixerSpec, parse_layout
from .named_layouts import LAYOUTS, PAPER_LAYOUTS, NamedLayout
from .presets import PRESETS, preset_config

__all__ = [
    "LAYOUTS",
    "PAPER_LAYOUTS",
    "PRESETS",
    "CompileMode",
    "LanguageModel",
    "Layout",
    "LayoutError",
    "MixerSpec",
    "ModelConfig",
    "ModelState",
    "NamedLayout",
    "compile_totals",
    "compiled",
    "compiled_since",
    "count_flops",
    "count_parameters",
    "flop_counter",
    "parse_layout",
    "preset_config",
    "resolve_d_ff",
]
