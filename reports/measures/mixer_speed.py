"""Mixer speed: a mixer alone, beside causal softmax attention."""

from __future__ import annotations

from ..in_turn import InTurn

SECTION = InTurn("mixer_speed", "Speed of single mixers")
