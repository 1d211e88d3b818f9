"""Overhead: what a layout's insertions add to the time of the same model without them."""

from __future__ import annotations

from ..in_turn import InTurn

SECTION = InTurn("overhead", "What insertions cost")
