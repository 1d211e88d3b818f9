"""The plug-ins of installed packages: which there are is asked of the registries, which could not be loaded here."""

from __future__ import annotations

import warnings

from .. import mixers
from ..mixers.plugins import load_plugins
from . import measures

COMMAND_GROUP = "mixerzoo.commands"
SECTION_GROUP = "mixerzoo.sections"  # theirs who know this package; here they are only tried


def load_quietly() -> dict[str, str]:
    """Load mixers and measures; returns entry point -> what went wrong, for those that did not load. Prints nothing:
    what a case leaves on stderr is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mixers.plugin_errors() | measures.plugin_errors()


def failed_plugins() -> dict[str, str]:
    """Load every plug-in, sections of reports and commands included; returns what went wrong, as `load_quietly`."""
    failed = load_quietly()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group, kind in ((SECTION_GROUP, "section"), (COMMAND_GROUP, "command")):
            failed |= load_plugins(group, kind, lambda loaded: None)
    return failed
