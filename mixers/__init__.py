"""Causal sequence mixers under one contract."""

# Importing a family registers its mixers.
from . import controls, delta, linear, memory, softmax, state_space  # noqa: F401
from .contract import CheckReport, CheckResult, ContractError, check_mixer, small_options
from .convert import from_fla, from_huggingface
from .interface import Mixer, MixerCard, NotFiniteInputError
from .options import REQUIRED, Option, option
from .registry import (
    UnknownMixerError,
    check_option,
    create_mixer,
    list_mixers,
    mixer_card,
    mixer_class,
    mixer_options,
    plugin_errors,
    register_mixer,
)
from .state import SHARED, GrowableBuffer, MixerState, RecurrentState

__all__ = [
    "REQUIRED",
    "SHARED",
    "CheckReport",
    "CheckResult",
    "ContractError",
    "GrowableBuffer",
    "Mixer",
    "MixerCard",
    "MixerState",
    "NotFiniteInputError",
    "Option",
    "RecurrentState",
    "UnknownMixerError",
    "check_mixer",
    "check_option",
    "create_mixer",
    "from_fla",
    "from_huggingface",
    "list_mixers",
    "mixer_card",
    "mixer_class",
    "mixer_options",
    "option",
    "plugin_errors",
    "register_mixer",
    "small_options",
]
