"""Loading what installed packages announce under an entry point group."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

_MOST_CHARACTERS = 500


def load_plugins(group: str, kind: str, register: Callable[[Any], object]) -> dict[str, str]:
    """Give `register` what each entry point of `group` stands for; returns entry point -> what went wrong, for those
    that did not load. Each of these is warned of as well, as a plug-in of that `kind`; what it prints is dropped."""
    errors: dict[str, str] = {}
    for entry in entry_points(group=group):
        source = _one_line(f"{entry.name} ({entry.value})")
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                register(entry.load())
        except (Exception, SystemExit) as error:  # somebody else's code: it must not take the others down
            errors[source] = describe(error)
            warnings.warn(f"the {kind} plug-in {source} could not be loaded: {errors[source]}", stacklevel=3)
        else:
            sys.stderr.write(said.getvalue())
    return errors


def describe(error: BaseException) -> str:
    """An error of somebody else's code in one line of printable characters."""
    try:
        message = str(error)
    except Exception:  # its own code, too
        message = "(its message cannot be made)"
    return _one_line(f"{type(error).__name__}: {message}")


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
