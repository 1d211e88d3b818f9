"""Decode speed: a step of the recorded decoder beside calling the model."""

from __future__ import annotations

from ..in_turn import InTurn

SECTION = InTurn("decode_speed", "Decoding, recorded and called")
