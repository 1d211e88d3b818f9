"""How numbers and foreign text are written: SI units, percentages with intervals, Markdown that cannot be broken."""

from __future__ import annotations

import math
import re
from typing import Any

from .statistics import Interval

_PREFIXES = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")]
NOTHING = "–"
_MODES = {
    "forward": "forward pass",
    "train": "training step",
    "training_step": "training step",
    "prefill": "prefill",
    "decode": "decoding",
}


def missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """`12345 -> "12.3 k"`, with a unit `"12.3 ktokens"`-style prefix joined to it: `si(1.2e9, "B") == "1.20 GB"`."""
    if value is None or missing(value):
        return NOTHING
    if value == 0:
        return f"0 {unit}".rstrip()
    exponent = math.floor(math.log10(abs(value)))
    value = round(value, digits - 1 - exponent)
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), _PREFIXES[-1])
    scaled = value / scale
    whole = len(str(int(abs(scaled))))
    decimals = 0 if not prefix and float(value).is_integer() else max(0, digits - whole)
    return f"{scaled:.{decimals}f} {prefix}{unit}".rstrip()


def bytes_(value: float | None) -> str:
    """Bytes in SI units: `1.23 GB`."""
    return si(value, "B")


def seconds(value: float | None) -> str:
    """Seconds in SI units up to a minute, then `3 min 20 s`, `2 h 5 min`."""
    if value is None or missing(value) or value < 60:
        return si(value, "s")
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate(value: float | None) -> str:
    """`12.3 k tokens/s`."""
    if value is None or missing(value):
        return NOTHING
    number = si(value)
    return f"{number} tokens/s"


def whole(value: float | None) -> str:
    """`8,192`."""
    return NOTHING if value is None or missing(value) else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """`93.1 %`."""
    return NOTHING if value is None or missing(value) else f"{value * 100:.1f} %"


def percent_interval(interval: Interval) -> str:
    """`93.1 % [91.0, 94.8]`."""
    if missing(interval.value):
        return NOTHING
    return f"{percent(interval.value)} [{interval.low * 100:.1f}, {interval.high * 100:.1f}]"


def rate_interval(interval: Interval) -> str:
    """`12.3 k tokens/s [12.0 k, 12.6 k]`."""
    return f"{rate(interval.value)} [{si(interval.low)}, {si(interval.high)}]"


def times(interval: Interval) -> str:
    """`1.80 times [1.71, 1.92]`."""
    return f"{interval.value:.3g} times [{interval.low:.3g}, {interval.high:.3g}]"


def listing(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def numbers(values: list[int]) -> str:
    """`0, 1 and 2`; of many `0 to 101 (102 of them)`."""
    if len(values) <= 12:
        return listing([str(n) for n in values])
    return f"{min(values)} to {max(values)} ({len(values)} of them)"


def mode_name(mode: object) -> str:
    """How a mode of a measure of speed or memory is written."""
    return _MODES.get(str(mode), str(mode).replace("_", " "))


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the cut marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def markdown(value: object) -> str:
    """Text from a run as one line of Markdown that renders as itself, in a table cell too."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # what would open or close something; `_` only at the edge of a word, `]` only where a link could follow
    marks = r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|^[-+#=]|:(?=//)|^\d+(?=[.)](\s|$))"
    return re.sub(marks, lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "…": r"\dots{}",
    "{": r"\textbraceleft{}",  # BibTeX counts braces, escaped ones too
    "}": r"\textbraceright{}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
    **{mark: f"{{{mark}}}" for mark in "[]*"},  # would be read as arguments of a line's end
}


def latex(value: object) -> str:
    """Text from a run as one line of LaTeX that sets as itself, in a table cell too. Characters beyond ASCII stay."""
    text = "".join(character for character in " ".join(str(value).split()) if character.isprintable())
    return "".join(_LATEX.get(character, character) for character in text)


def plain(value: Any) -> Any:
    """JSON of a nested value: null for a number that is not finite, lists for tuples, numbers of numpy as Python's."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
