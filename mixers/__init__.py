"""Causal sequence mixers under one contract."""

# Importing a family registers its mixers.
from . import delta, fwmlp, fwpkm, linear, pkm, softmax, ttt  # noqa: F401
from .contract import CheckReport, CheckResult, ContractError, check_mixer, small_options
from .interface import Mixer, MixerCard, NotFiniteInputError
from .registry import (
    UnknownMixerError,
    create_mixer,
    list_mixers,
    mixer_card,
    mixer_class,
    mixer_options,
    plugin_errors,
    register_mixer,
)
from .state import SHARED, GrowableBuffer, MixerState

__all__ = [
    "SHARED",
    "CheckReport",
    "CheckResult",
    "ContractError",
    "GrowableBuffer",
    "Mixer",
    "MixerCard",
    "MixerState",
    "NotFiniteInputError",
    "UnknownMixerError",
    "check_mixer",
    "create_mixer",
    "list_mixers",
    "mixer_card",
    "mixer_class",
    "mixer_options",
    "plugin_errors",
    "register_mixer",
    "small_options",
]
