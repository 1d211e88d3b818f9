"""Op speed: the backends of one op, in turn in one process."""

from __future__ import annotations

from ..in_turn import InTurn

SECTION = InTurn("op_speed", "Op speed", {"backends", "slow", "slow_rounds", "decode_chunks", "copy_bytes"})
