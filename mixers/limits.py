"""The limits of all numbers that people write: in suites, training files, layout lines and model configurations.

Each is far above what anybody runs, and far below what makes a tool count, draw or allocate without an end: a number
with a few zeros too many is refused where it stands, before any work is done. docs/limits.md has the same in words.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

LARGEST_SIZE = 2**30
LONGEST_COUNTED = 2**16
LARGEST_COUNT = 10**12
LARGEST_WIDTH = 2**20
LARGEST_VOCABULARY = 2**24
MOST_LAYERS = 1024
MOST_JOBS = 4096
MOST_DIGITS = 18
LARGEST_SEED = 2**63 - 1
MOST_SECONDS = 1e8
MOST_BYTES = 2**60
LARGEST_REAL = 1e15
MOST_PARAMETERS = 10**13
MOST_LINE_CHARACTERS = 20_000
MOST_CASES = 1_000_000

_SHOWN_CHARACTERS = 80


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for 0 and 1
        raise ValueError("expected a number, not true or false")
    return value


_NotBool = BeforeValidator(_no_truth_value)

Size = Annotated[int, _NotBool, Field(ge=1, le=LARGEST_SIZE)]
"""Tokens of a sequence, sequences of a batch, things that a task hides in a sequence."""
MatchTime = Annotated[int, _NotBool, Field(ge=1, le=LONGEST_COUNTED)]
"""Tokens over which FLOPs are counted, which runs a model over them."""
Count = Annotated[int, _NotBool, Field(ge=1, le=LARGEST_COUNT)]
"""How often something is done: steps, rounds, examples."""
Amount = Annotated[int, _NotBool, Field(ge=0, le=LARGEST_COUNT)]
"""How many of something there are, of which there may be none."""
Width = Annotated[int, _NotBool, Field(ge=1, le=LARGEST_WIDTH)]
"""Features of a token: the width of a model, of its feed-forwards, of a head."""
Vocabulary = Annotated[int, _NotBool, Field(ge=1, le=LARGEST_VOCABULARY)]
"""Token ids of a model, or a part of them."""
Layers = Annotated[int, _NotBool, Field(ge=1, le=MOST_LAYERS)]
"""Layers of a model."""
Jobs = Annotated[int, _NotBool, Field(ge=1, le=MOST_JOBS)]
"""Cases at a time."""
Digits = Annotated[int, _NotBool, Field(ge=1, le=MOST_DIGITS)]
"""Of a number that a task hides: as many as 64 bits hold."""
Seed = Annotated[int, _NotBool, Field(ge=0, le=LARGEST_SEED)]
"""What NumPy, torch and a table of whole numbers all take."""
Seconds = Annotated[float, _NotBool, Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
"""A length of time: at most some three years."""
Bytes = Annotated[int, _NotBool, Field(ge=1, le=MOST_BYTES)]
"""A piece of memory: at most an exbibyte."""
Real = Annotated[float, _NotBool, Field(ge=-LARGEST_REAL, le=LARGEST_REAL, allow_inf_nan=False)]
"""Any other number: rates, shares, weights, bars."""


def shown(value: Any) -> str:
    """`repr(value)` for a message, short whatever the value is."""
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN_CHARACTERS:  # Python refuses to write the longest
        return f"a whole number of {value.bit_length():,} bits"
    text = repr(value[: 2 * _SHOWN_CHARACTERS]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
