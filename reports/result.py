"""A result line as reports hold it: of a hundred thousand lines, what is equal is held once, and numbers as arrays."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from ..benchmarks.runs import ResultLine, Status
from .inference import Tally

_LONG = 8  # a list of so many numbers becomes an array
_EQUAL = frozenset({"text", "data", "chosen", "choice", "bar", "state_bytes"})  # metrics that many lines have alike


@dataclass(frozen=True, slots=True)
class Result:
    """A finished case, see `ResultLine`. exclusive: whether it ran alone on its machine; None where nothing says it.

    In its metrics lists of numbers are arrays, the answers of recall `Tally`s, its rows `Rows` and curves `Curve`s.
    """

    case: str
    layout: str
    measure: str
    parameters: dict[str, Any]
    seed: int
    status: Status
    backends: dict[str, list[str]]
    seconds: float
    ended: str | None
    machine: dict[str, str] | None
    attempts: list[dict[str, Any]]
    peak_bytes: int | None
    metrics: dict[str, Any] | None
    error: str | None
    exclusive: bool | None = None

    def without_lists(self) -> Result:
        """The same without what is in the tables by then: samples, answers, rows and curves."""
        if self.metrics is None:
            return self
        return replace(self, metrics={name: _short(value) for name, value in self.metrics.items()})


class Rows(Sequence[dict[str, Any]]):
    """Dicts that all have the same keys, held by columns."""

    __slots__ = ("columns",)

    def __init__(self, columns: dict[str, tuple[Any, ...]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @overload
    def __getitem__(self, which: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, which: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, which: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(which, slice):
            return list(self)[which]
        return {name: values[which] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row)) for row in zip(*self.columns.values()))


class Curve(Sequence[Any]):
    """Pairs of a step and a loss."""

    __slots__ = ("losses", "steps")

    def __init__(self, pairs: Sequence[Sequence[float]]) -> None:
        self.steps, self.losses = array("q", [pair[0] for pair in pairs]), array("d", [pair[1] for pair in pairs])

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return list(zip(self.steps[which], self.losses[which]))
        return self.steps[which], self.losses[which]


class Slimmer:
    """Makes `Result`s, and knows what it has seen before."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, line: ResultLine) -> Result:
        """`line`, slim. Raises `ValueError` for answers that are none."""
        said = (line.model_extra or {}).get("exclusive")
        return Result(
            case=line.case,
            layout=self._once(line.layout),
            measure=self._once(line.measure),
            parameters={name: self._once(value) for name, value in line.parameters.items()},
            seed=line.seed,
            status=line.status,
            backends=self._once(line.backends),
            seconds=line.seconds,
            ended=line.ended,
            machine=self._once(line.machine),
            attempts=self._once(line.attempts),
            peak_bytes=line.peak_bytes,
            metrics=None if line.metrics is None else self._dict(line.metrics),
            error=line.error,
            exclusive=said if isinstance(said, bool) else None,
        )

    def _once(self, value: Any) -> Any:
        """`value`, or what is equal to it and was there before."""
        kind = type(value)
        if kind is str:
            return self._known.setdefault(value, value)
        if kind is dict or kind is list:
            # version 2 knows no references, so that equal values have equal bytes
            return self._known.setdefault(marshal.dumps(value, 2), value)
        return value

    def _dict(self, found: dict[str, Any]) -> dict[str, Any]:
        return {name: self._value(name, value) for name, value in found.items()}

    def _value(self, name: str, value: Any) -> Any:
        kind = type(value)
        if name in _EQUAL or kind is str:
            return self._once(value)
        if kind is dict:
            return self._dict(value)
        if kind is not list or not value:
            return value
        first = value[0]
        try:
            if type(first) is float and len(value) >= _LONG:
                return array("d", value)
            if name == "curve":
                return Curve(value)
        except (TypeError, IndexError, OverflowError):
            return value
        if type(first) is dict:
            return self._rows(name, value)
        return value

    def _rows(self, name: str, found: list[Any]) -> Any:
        if not all(type(row) is dict for row in found):
            return found
        if name == "answers":
            return [{k: Tally.of(v) if k == "hits" else self._once(v) for k, v in row.items()} for row in found]
        keys = found[0].keys()
        if any(type(value) in (dict, list) for value in found[0].values()):
            return [self._dict(row) for row in found]
        if any(row.keys() != keys for row in found):
            return found
        once = self._once
        return Rows({key: tuple([once(row[key]) for row in found]) for key in keys})


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    return () if isinstance(value, list | array | Rows | Curve) else value
