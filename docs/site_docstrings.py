"""Docstrings of the house as Markdown: paragraphs, and lines that begin `name: ` as a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

_NAMES = r"[a-z_]\w*(?:[,;] [a-z_]\w*)*(?: `\[[^`]*\]`)?"
_TERM = re.compile(rf"({_NAMES}): ")
_LATER = re.compile(rf"(?:^|(?<=\. ))({_NAMES}): ")
_MARKS = re.compile(r"[*<|~\[\]]|(?<!\w)_|_(?!\w)")


def markdown(text: str) -> str:
    """A docstring as Markdown; its indented blocks are code, and what is between backticks."""
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", text))


def _paragraph(part: str) -> str:
    lines = part.splitlines()
    if all(line.startswith("    ") for line in lines):
        return part
    entries: list[str] = []
    for before, line in zip(["", *lines], lines):
        # a list goes on until a sentence begins with a line
        over = bool(entries) and before.endswith((".", ".)")) and line[:1].isupper() and _TERM.match(entries[-1])
        if not entries or over or _TERM.match(line):
            entries.append(line)
        else:
            entries[-1] += f" {line.strip()}"
    return "\n".join(_listed(entry) if _TERM.match(entry) else f"\n{_itself(entry)}\n" for entry in entries).strip()


def _listed(entry: str) -> str:
    """`name: meaning. other: meaning.` as items of a list."""
    _, *pieces = _LATER.split(entry)
    return "\n".join(f"- **{_itself(name)}**: {_itself(text.strip())}" for name, text in zip(pieces[::2], pieces[1::2]))


def _itself(text: str) -> str:
    """Outside of backticks every character is itself."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else _MARKS.sub(r"\\\g<0>", p) for i, p in enumerate(parts))


class Docstrings(Extension):
    """Rewrites every docstring once it is read; says of an op's `OP`, which has none, what it is."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        if attr.name == "OP" and attr.docstring is None:
            attr.docstring = Docstring("The op with its backends, as `auto` and the doctor know them.", parent=attr)
