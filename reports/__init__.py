"""Reports: a run becomes tables, charts and a page."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import write_report
    from .tables import RunData, read_run

__all__ = ["RunData", "read_run", "write_report"]


def __getattr__(name: str) -> Any:
    """Imported on first use: the command line imports this package, and drawing libraries take a second to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".page" if name == "write_report" else ".tables", __name__), name)
