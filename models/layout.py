"""Layout lines: which mixer stands at which layer, e.g. `sliding_window_attention*3, gated_deltanet | fwpkm@2,10`.

Left of `|`: mixers with their options, each repeated `*n` times, tiled over the layers. Right of it: what is inserted
at which layers, counted from 0: as a residual sublayer before the mixer, or in place of the SwiGLU if the inserted
mixer's card says that its role is feed-forward. The name of a layout may stand for its whole line, see `LAYOUTS`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken
from lark.exceptions import VisitError

from ..mixers import UnknownMixerError, check_option, list_mixers, mixer_card
from ..mixers.limits import MOST_LINE_CHARACTERS
from .named_layouts import LAYOUTS

_GRAMMAR = r"""
layout: pattern ["|" insertions]
pattern: repeated ("," repeated)*
repeated: mixer ["*" COUNT]
insertions: insertion ("+" insertion)*
insertion: mixer "@" COUNT ("," COUNT)*
mixer: NAME ["(" [option ("," option)*] ")"]
option: NAME "=" (NUMBER | STRING | NAME)

NAME: /[A-Za-z_]\w*/
COUNT: /[0-9]{1,9}/
NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?/
STRING: /"([^"\\\n]|\\.)*"|'([^'\\\n]|\\.)*'/
%ignore /\s+/
"""
_TERMINALS = {
    "NAME": "a name",
    "COUNT": "a whole number",
    "NUMBER": "a number",
    "STRING": "a quoted string",
    "$END": "the end",
    "VBAR": "'|'",
    "COMMA": "','",
    "STAR": "'*'",
    "PLUS": "'+'",
    "AT": "'@'",
    "LPAR": "'('",
    "RPAR": "')'",
    "EQUAL": "'='",
}
_SHOWN_CHARACTERS = 100  # of a line, to either side of what is wrong with it
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "none": None, "null": None}


class LayoutError(ValueError):
    """A layout line that cannot be used; the message shows the line, of a long one the part around the offending
    character, and a caret under that."""

    def __init__(self, message: str, line: str, column: int) -> None:
        start = max(0, column - _SHOWN_CHARACTERS)
        part = line[start : column + _SHOWN_CHARACTERS]
        shown = "".join(" " if c.isspace() else c for c in part)  # so that the caret stays under its character
        super().__init__(f"{message}\n  {shown}\n  {' ' * (column - start)}^")
        self.column = column


@dataclass(frozen=True)
class MixerSpec:
    """A mixer of a layout line: its name, the options that the line gives, and where in the line they stand."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    column: int = field(default=0, compare=False, repr=False)
    option_columns: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})" if self.options else self.name


@dataclass(frozen=True)
class Repeated:
    """A mixer that stands at `times` layers in a row."""

    mixer: MixerSpec
    times: int = 1
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.mixer}*{self.times}" if self.times > 1 else str(self.mixer)


@dataclass(frozen=True)
class Insertion:
    """A mixer that is added at `layers`."""

    mixer: MixerSpec
    layers: tuple[int, ...]
    columns: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.mixer}@{','.join(map(str, self.layers))}"


@dataclass(frozen=True)
class Layout:
    """A parsed layout line; `str(layout)` is the canonical line, which parses to an equal layout."""

    pattern: tuple[Repeated, ...]
    insertions: tuple[Insertion, ...] = ()
    line: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        pattern = ", ".join(map(str, self.pattern))
        return f"{pattern} | {' + '.join(map(str, self.insertions))}" if self.insertions else pattern

    def place(self, n_layers: int) -> list[LayerSpec]:
        """What stands at each of `n_layers` layers.

        Raises `LayoutError` for an unknown mixer or option, a value that an option cannot have, a layer that does not
        exist or is taken, or a pattern longer than the model.
        """
        mixers: list[MixerSpec] = []
        for repeated in self.pattern:
            self._check_mixer(repeated.mixer)
            if mixer_card(repeated.mixer.name).role == "feed_forward":
                name = repeated.mixer.name
                message = f"{name} is a feed-forward: insert it right of '|', as in '| {name}@0'"
                raise self.error(message, repeated.mixer.column)
            if len(mixers) + repeated.times > n_layers:
                message = f"the pattern up to here has {len(mixers) + repeated.times} layers, the model has {n_layers}"
                raise self.error(message, repeated.column)
            mixers += [repeated.mixer] * repeated.times
        layers = [LayerSpec(mixers[i % len(mixers)]) for i in range(n_layers)]
        for insertion in self.insertions:
            self._insert(insertion, layers)
        return layers

    def _insert(self, insertion: Insertion, layers: list[LayerSpec]) -> None:
        self._check_mixer(insertion.mixer)
        role = mixer_card(insertion.mixer.name).role
        place = "feed_forward" if role == "feed_forward" else "memory"
        columns = insertion.columns or (0,) * len(insertion.layers)
        for layer, column in zip(insertion.layers, columns):
            if layer >= len(layers):
                last = len(layers) - 1
                raise self.error(f"there is no layer {layer}: the model's layers are 0 to {last}", column)
            taken = getattr(layers[layer], place)
            if taken is not None:
                what = "a feed-forward" if place == "feed_forward" else "a memory sublayer"
                raise self.error(f"layer {layer} already has {what}, {taken.name}", column)
            setattr(layers[layer], place, insertion.mixer)

    def _check_mixer(self, mixer: MixerSpec) -> None:
        try:
            mixer_card(mixer.name)
        except UnknownMixerError as error:
            alone = str(self) == mixer.name
            raise self.error(f"{error}{_similar_layouts(mixer.name) if alone else ''}", mixer.column) from error
        for option, value in mixer.options.items():
            try:
                check_option(mixer.name, option, value)
            except ValueError as error:
                raise self.error(str(error), mixer.option_columns.get(option, mixer.column)) from None

    def error(self, message: str, column: int) -> LayoutError:
        """A `LayoutError` about the character at `column` of this layout's line."""
        return LayoutError(message, self.line or str(self), column)


@dataclass
class LayerSpec:
    """What a layout puts at one layer; `feed_forward` None leaves the SwiGLU."""

    mixer: MixerSpec
    memory: MixerSpec | None = None
    feed_forward: MixerSpec | None = None


def parse_layout(line: str) -> Layout:
    """Parse a layout line, or that of a name in `LAYOUTS` that no mixer has.

    Raises `LayoutError`, which points at the character and says what was expected there.
    """
    line = layout_line(line)
    if len(line) > MOST_LINE_CHARACTERS:
        raise LayoutError(f"the line is longer than {MOST_LINE_CHARACTERS:,} characters", line, MOST_LINE_CHARACTERS)
    try:
        return _Build(line).transform(_parser().parse(line))
    except VisitError as error:
        raise error.orig_exc from None
    except UnexpectedCharacters as error:
        column, expected = error.pos_in_stream or 0, error.allowed or set()
        found = repr(line[column])
        if re.fullmatch(r"\s*[A-Za-z]\w*(-\w+)+\s*", line):  # no line, but the names of the FwPKM paper look like that
            name = line.strip()
            hint = _similar_layouts(name) or "; `mixerzoo layouts` lists them"
            raise LayoutError(f"unknown layout {name!r}{hint}", line, line.index(name)) from None
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        found = "the end" if at_end else repr(str(error.token))
        column, expected = len(line) if at_end else _column(error.token), error.accepts or error.expected
    wanted = " or ".join(sorted(_TERMINALS[name] for name in expected))
    raise LayoutError(f"expected {wanted}, found {found}", line, column)


def layout_line(line: str) -> str:
    """The line that `line` stands for if it is a name in `LAYOUTS` and not that of a mixer, else `line` itself."""
    name = line.strip()
    return LAYOUTS[name].line if name in LAYOUTS and name not in list_mixers() else line


def _similar_layouts(name: str) -> str:
    close = difflib.get_close_matches(name, LAYOUTS, n=1, cutoff=0.7)
    return f"; did you mean the layout {close[0]}?" if close else ""


def _column(token: Token) -> int:
    return token.start_pos or 0


@functools.cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, start="layout", parser="lalr", maybe_placeholders=True)


class _Build(Transformer):
    """Parse tree -> Layout; what the grammar cannot say (a name given twice, a repeat of 0) is refused here."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def layout(self, items: list[Any]) -> Layout:
        pattern, insertions = items
        return Layout(pattern, insertions or (), self.line)

    def pattern(self, items: list[Repeated]) -> tuple[Repeated, ...]:
        return tuple(items)

    insertions = pattern

    def repeated(self, items: list[Any]) -> Repeated:
        mixer, count = items
        if count is None:
            return Repeated(mixer, 1, mixer.column)
        if int(count) < 1:
            raise LayoutError("a mixer is repeated at least once", self.line, _column(count))
        return Repeated(mixer, int(count), _column(count))

    def insertion(self, items: list[Any]) -> Insertion:
        mixer, *layers = items
        return Insertion(mixer, tuple(int(t) for t in layers), tuple(_column(t) for t in layers))

    def mixer(self, items: list[Any]) -> MixerSpec:
        name, *options = items
        given = [option for option in options if option is not None]
        columns: dict[str, int] = {}
        for key, _ in given:
            if key in columns:
                raise LayoutError(f"the option {str(key)!r} is given twice", self.line, _column(key))
            columns[str(key)] = _column(key)
        return MixerSpec(str(name), {str(key): value for key, value in given}, _column(name), columns)

    def option(self, items: list[Token]) -> tuple[Token, Any]:
        key, value = items
        if value.type == "NAME":
            return key, _CONSTANTS.get(value, str(value))
        try:
            parsed = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise LayoutError("this value cannot be read", self.line, _column(value)) from None
        if isinstance(parsed, float) and not math.isfinite(parsed):
            raise LayoutError("this number is too large", self.line, _column(value))
        return key, parsed
