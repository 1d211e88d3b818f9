"""Library overhead: an op of ours beside the library's function that it calls."""

from __future__ import annotations

from ..in_turn import InTurn

SECTION = InTurn("library_overhead", "What an op adds to its library", {"most"})
