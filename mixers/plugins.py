"""Loading what installed packages announce under an entry point group."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any


def load_plugins(group: str, kind: str, register: Callable[[Any], object]) -> dict[str, str]:
    """Give `register` what each entry point of `group` stands for; returns entry point -> what went wrong, for those
    that did not load. Each of these is warned of as well, as a plug-in of that `kind`."""
    errors: dict[str, str] = {}
    for entry in entry_points(group=group):
        source = f"{entry.name} ({entry.value})"
        try:
            register(entry.load())
        except Exception as error:  # somebody else's code: whatever it raises must not take the others down
            errors[source] = f"{type(error).__name__}: {error}"
            warnings.warn(f"the {kind} plug-in {source} could not be loaded: {errors[source]}", stacklevel=3)
    return errors
