"""Finding measures by name: ours, and those that installed packages announce under `mixerzoo.measures`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ...mixers.plugins import load_plugins
from ..yamlfile import suggestion

if TYPE_CHECKING:
    from .base import Measure

ENTRY_POINT_GROUP = "mixerzoo.measures"

_measures: dict[str, type[Measure]] = {}


def register(cls: type[Measure]) -> None:
    """Make a `Measure` known under the name that its field `measure` has. Raises if it has none, or that is taken."""
    annotation = cls.model_fields["measure"].annotation
    names = get_args(annotation) if get_origin(annotation) is Literal else ()
    if len(names) != 1 or not isinstance(names[0], str):
        raise TypeError(f'{cls.__name__} needs its name as `measure: Literal["name"]`, got {annotation}')
    taken = _measures.setdefault(names[0], cls)
    if taken is not cls:
        raise ValueError(f"the measure name {names[0]!r} is taken by {taken.__module__}.{taken.__qualname__}")


@functools.cache
def plugin_errors() -> dict[str, str]:
    """Load the installed plug-ins once; returns entry point -> what went wrong, for those that did not load."""
    return load_plugins(ENTRY_POINT_GROUP, "measure", _check)


def _check(loaded: Any) -> None:
    if loaded not in _measures.values():  # a Measure with a name is known since its class was made
        raise TypeError(f'a plug-in needs a Measure subclass with `measure: Literal["name"]`, got {loaded!r}')


def measures() -> dict[str, type[Measure]]:
    """All measures by name."""
    plugin_errors()
    return dict(sorted(_measures.items()))


def measure_class(name: Any) -> type[Measure]:
    """The measure `name`. Raises `ValueError` with a close one."""
    known = measures()
    if name not in known:
        raise ValueError(f"unknown measure {name!r}{suggestion(str(name), known)}")
    return known[name]
