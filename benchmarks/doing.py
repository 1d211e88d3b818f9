"""What a piece of work says of itself while it is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Doing:
    """stage: a few words, such as `round 12`. values: numbers to watch by name, such as `{"loss": 1.23}`; those named
    `accuracy` are shares, those named `tokens/s` and `ms` are shown with that unit."""

    stage: str
    values: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, said: str | Doing) -> Doing:
        """What was said, where a plain text is a stage without values."""
        return said if isinstance(said, Doing) else cls(str(said))

    @property
    def numbers(self) -> str:
        """The values for people: `loss 1.230, accuracy 97.0%`."""
        return ", ".join(_number(name, value) for name, value in self.values.items())

    def within(self, work: str) -> Doing:
        """The same as a part of `work`."""
        return Doing(f"{work}, {self.stage}", self.values)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.stage, self.numbers) if part)


# Share of the work done, 0..1, and what it is doing: a line for people, or a `Doing` where there are numbers to watch.
Progress = Callable[[float, "str | Doing"], None]


def _number(name: str, value: float) -> str:
    if name == "accuracy":
        return f"accuracy {value:.1%}"
    if name == "loss":
        return f"loss {value:.3f}"
    if name == "ms":
        return f"{_short(value)} ms" if value < 1000 else f"{_short(value / 1000)} s"
    return f"{_short(value)} tokens/s" if name == "tokens/s" else f"{name} {_short(value)}"


def _short(value: float) -> str:
    """About three digits: `3.41 k`, `0.052`."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            value, unit = value / size, prefix
            break
    else:
        unit = ""
    return f"{value:.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"
