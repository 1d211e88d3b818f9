"""What is read of a foreign file, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict


class ForeignError(ValueError):
    """A file that is not what it was taken for; the message says what was expected."""


@dataclass(frozen=True)
class Value:
    """One number of a foreign file, in its words.

    layout: what the file calls that which was measured. quantity, unit: of the value; unit "" where it has none.
    interval: what `low` and `high` are, None without them. count: of the rounds or examples behind it. mode, length:
    as in the file. better: `more` or `less`, None where the file does not say. settings: all else that tells it from
    the other values.
    """

    layout: str
    quantity: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    count: int | None = None
    task: str | None = None
    mode: str | None = None
    length: int | None = None
    better: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a file says. tool, version: who wrote it; environment: what it says of machine and software, under the
    names of `environment.json`."""

    tool: str
    version: str | None
    environment: dict[str, Any]
    values: list[Value]


@dataclass(frozen=True)
class Format:
    """One that can be read. expected: what its files look like, for messages. recognises: whether parsed JSON, or text,
    looks like one. read: may raise `ForeignError`, or pydantic's `ValidationError`."""

    expected: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any], Reading]


class Model(BaseModel):
    """Only what is read of a file; the rest of it may be anything."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


def has(data: Any, **kinds: type) -> bool:
    """Whether parsed JSON is an object with these members, each of its kind."""
    return isinstance(data, dict) and all(isinstance(data.get(name), kind) for name, kind in kinds.items())


def known(**found: Any) -> dict[str, Any]:
    """Without what a file does not say."""
    return {name: value for name, value in found.items() if value not in (None, {}, "")}


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether parsed JSON is one; NaN and infinity are."""
    return isinstance(value, int | float) and not isinstance(value, bool)
