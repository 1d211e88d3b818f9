"""What a model is made of, as plain data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..mixers.limits import LARGEST_SEED, LARGEST_VOCABULARY, LARGEST_WIDTH, LONGEST_COUNTED, MOST_LAYERS, shown
from .layout import layout_line, parse_layout

_LARGEST = {
    "d_model": LARGEST_WIDTH,
    "n_layers": MOST_LAYERS,
    "d_ff": LARGEST_WIDTH,
    "vocab_size": LARGEST_VOCABULARY,
    "match_time": LONGEST_COUNTED,
}


@dataclass(frozen=True)
class ModelConfig:
    """A language model: a layout line and the backbone around it.

    layout: which mixer stands at which layer, see `parse_layout`; a name is replaced by its line.
    d_model, n_layers, vocab_size: sizes.
    d_ff: width of the SwiGLU feed-forwards; None: 8/3 d_model, rounded up to a multiple of 32.
    mixer_defaults: options by mixer name, for every place where it stands; the options in the layout line win.
    seed: of the initial parameters.
    match: `params` or `flops` gives the feed-forwards the width at which the model has, within 1 %, as many parameters
        or FLOPs as the layout `match_layout` has with width d_ff; FLOPs are counted over `match_time` tokens.
    Raises `ValueError` for values that no model can have, `LayoutError` for a layout line that does not parse.
    """

    layout: str
    d_model: int = 64
    n_layers: int = 2
    d_ff: int | None = None
    vocab_size: int = 512
    mixer_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    match: Literal["params", "flops"] | None = None
    match_layout: str | None = None
    match_time: int = 1024

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "vocab_size", "match_time"):
            _check_size(name, getattr(self, name))
        if self.d_ff is not None:
            _check_size("d_ff", self.d_ff)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or abs(self.seed) > LARGEST_SEED:
            raise ValueError(f"seed must be a whole number of at most {LARGEST_SEED:,}, got {shown(self.seed)}")
        if self.match not in (None, "params", "flops"):
            raise ValueError(f"match must be None, 'params' or 'flops', got {shown(self.match)}")
        if (self.match is None) != (self.match_layout is None):
            raise ValueError("match and match_layout go together: give both or neither")
        if not isinstance(self.mixer_defaults, Mapping):
            raise ValueError(f"mixer_defaults must be a mapping of mixers, got {shown(self.mixer_defaults)}")
        for name, options in self.mixer_defaults.items():
            if not isinstance(options, Mapping):
                raise ValueError(f"mixer_defaults[{name!r}] must be a mapping of options, got {shown(options)}")
        # a saved model must not change with what a name stands for
        for name in ("layout", "match_layout"):
            if (line := getattr(self, name)) is not None or name == "layout":
                if not isinstance(line, str):
                    raise ValueError(f"{name} must be a layout line, got {shown(line)}")
                object.__setattr__(self, name, layout_line(line))
                parse_layout(line)

    @property
    def base_d_ff(self) -> int:
        """The feed-forward width before matching."""
        return self.d_ff if self.d_ff is not None else -(-8 * self.d_model // 3 // 32) * 32

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and YAML."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "mixer_defaults": {name: dict(options) for name, options in self.mixer_defaults.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises `ValueError` for a key that is unknown or missing."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in data:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ValueError(f"a model has no setting {key!r}; {hint}its settings are {', '.join(known)}")
        if "layout" not in data:
            raise ValueError("a model needs a layout")
        return cls(**data)


def _check_size(name: str, value: Any) -> None:
    most = _LARGEST[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number of at least 1 and at most {most:,}, got {shown(value)}")
