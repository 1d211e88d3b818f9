"""Finding mixers by name: ours, and those that installed packages announce under the entry point `mixerzoo.mixers`."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from typing import Any, TypeVar

from .interface import Mixer, MixerCard, own_options, unknown_option
from .options import Option
from .plugins import load_plugins

ENTRY_POINT_GROUP = "mixerzoo.mixers"

_mixers: dict[str, type[Mixer]] = {}
MixerType = TypeVar("MixerType", bound=type[Mixer])


class UnknownMixerError(ValueError):
    """No mixer of that name; the message suggests close ones."""


def register_mixer(cls: MixerType) -> MixerType:
    """Class decorator: make a `Mixer` subclass known under its card's name. Raises if the name is taken."""
    if not (isinstance(cls, type) and issubclass(cls, Mixer) and isinstance(getattr(cls, "card", None), MixerCard)):
        raise TypeError(f"register_mixer needs a Mixer subclass with a MixerCard as its card, got {cls!r}")
    taken = _mixers.get(cls.card.name)
    if taken is not None and taken is not cls:
        raise ValueError(f"the mixer name {cls.card.name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    _mixers[cls.card.name] = cls
    return cls


@functools.cache
def plugin_errors() -> dict[str, str]:
    """Load the installed plug-ins once; returns entry point -> what went wrong, for those that did not load."""
    return load_plugins(ENTRY_POINT_GROUP, "mixer", register_mixer)


def mixer_class(name: str) -> type[Mixer]:
    """The class registered as `name`. Raises `UnknownMixerError` with close matches."""
    plugin_errors()
    if name not in _mixers:
        close = difflib.get_close_matches(name, _mixers, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(_mixers))}"
        raise UnknownMixerError(f"unknown mixer {name!r}; {hint}")
    return _mixers[name]


def mixer_card(name: str) -> MixerCard:
    """The card of the mixer `name`."""
    return mixer_class(name).card


def mixer_options(name: str) -> dict[str, Option]:
    """The options of the mixer `name`, as it declares them."""
    return own_options(mixer_class(name))


def check_option(name: str, option: str, value: Any) -> Any:
    """`value`, if the mixer `name` has this option and it takes the value.

    Raises `UnknownMixerError`, or `ValueError` that says what was expected or which option was meant.
    """
    known = mixer_options(name)
    if option not in known:
        raise unknown_option(mixer_class(name), option)
    return known[option].check(value)


def create_mixer(name: str, d_model: int, *, layer: int = 0, n_layers: int = 1, **options: Any) -> Mixer:
    """Build the mixer `name` for inputs `[batch, time, d_model]`; layer, n_layers: where in a model it stands.

    Raises `UnknownMixerError` for an unknown name and `ValueError` for an unknown or unfit option.
    """
    return mixer_class(name)(d_model, layer=layer, n_layers=n_layers, **options)


def list_mixers(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """Sorted names that match a shell pattern (`"*delta*"`) and, if given, a family."""
    plugin_errors()
    return sorted(
        name
        for name, cls in _mixers.items()
        if fnmatch.fnmatchcase(name, pattern) and family in (None, cls.card.family)
    )
