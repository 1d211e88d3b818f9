"""What a result adds to the tables that end a run on the terminal, and how their cells are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Format = Callable[[list[float]], str]


def three_digits(values: list[float]) -> str:
    """Their median."""
    value = median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def one_decimal(values: list[float]) -> str:
    """Their mean."""
    return f"{fmean(values):.1f}"


@dataclass(frozen=True)
class Entry:
    """A number of a layout. title: of its table. column: its heading, text, a number, or a tuple of either; columns are
    sorted, so those of one table are of one type. format: makes the cell of the values of all seeds."""

    title: str
    column: Any
    value: float
    format: Format = three_digits
