"""YAML that remembers where everything stands, so that a mistake is reported with its line.

A file is somebody else's: its bytes, nodes, depth and aliases have limits, and it is refused before anything walks it.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

MOST_BYTES = 1_000_000
MOST_NODES = 30_000
"""Keys, values and items, those counted again that an alias repeats."""
MOST_LEVELS = 50
_LARGEST_INT = 2**63

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80

shown = _repr.repr
"""`repr` for a message: short, whatever the file says."""

Location = Sequence["str | int"]


class SuiteError(ValueError):
    """A suite that cannot be run; the message lists every mistake with its file and line."""

    def __init__(self, source: str, problems: Iterable[tuple[int, str]]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(f"{source}:{line}: {message}" for line, message in self.problems))


class _Loader(yaml.SafeLoader):
    """Plain data, within the limits. YAML 1.1 takes 4e-3 for text; who writes a learning rate means a number."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, int] = {}  # of a node, by its id: nodes that it stands for; they live as long as this
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, with all below it; the loader's own, which calls this for each of them, counts nothing."""
        mark = self.peek_event().start_mark
        alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _refused(f"more than {MOST_LEVELS} levels deep", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if alias and id(node) not in self._sizes:
            raise _refused("an alias of what it stands in", mark)
        self._nodes += self._sizes[id(node)] if alias else 1
        if self._nodes > MOST_NODES:
            raise _refused(f"more than {MOST_NODES:,} keys, values and items (aliases count as what they repeat)", mark)
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The data of a node; what Python cannot make of it is a mistake on a line, too."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):  # such as the 31st of February
            what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise _refused(f"{what} cannot be read as {shown(node.tag.rpartition(':')[2])}", node) from None
        if isinstance(value, int) and not -_LARGEST_INT <= value < _LARGEST_INT:
            raise _refused(f"{shown(node.value)} is beyond 64 bits; no setting takes such a number", node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _refused(f"{shown(node.value)} is not a finite number; no setting takes it", node)
        return value


def _refused(problem: str, at: yaml.Mark | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, at.start_mark if isinstance(at, yaml.Node) else at)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass
class YamlFile:
    """A YAML document, `data`, with the places of its parts; `problems` collects what is wrong with it."""

    source: str
    data: Any
    root: yaml.Node
    problems: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str, source: str) -> YamlFile:
        """Parse `text`; `source` is its name in messages. Raises `SuiteError` if it is no YAML mapping."""
        root, data = _load(text, source)
        if root is None or not isinstance(data, dict):
            raise SuiteError(source, [(1, "a suite is a mapping of settings, e.g. `name: mine`")])
        file = cls(source, data, root)
        file.problems += [(line, f"{shown(key)} stands here twice") for line, key in _repeated_keys(root)]
        return file

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Parse the file `path`. Raises `SuiteError` as `parse`, `OSError` if it cannot be read."""
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        try:
            return cls.parse(content.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            if len(content) > MOST_BYTES:  # perhaps cut within a character
                raise _too_long(str(path)) from None
            line = content[: error.start].count(b"\n") + 1
            raise SuiteError(str(path), [(line, "this is no text in UTF-8")]) from None

    def complain(self, location: Location, message: str, *, key: bool = False) -> None:
        """Note a problem with what stands at `location`; with `key`, point at its key instead."""
        where = _dotted(location)
        self.problems.append((self.line(location, key=key), f"{where}: {message}" if where else message))

    def complain_all(self, error: ValidationError, prefix: Location = (), known: Iterable[str] = ()) -> None:
        """Note every problem of a pydantic validation of what stands at `prefix`; `known` are its settings."""
        for problem in error.errors(include_url=False):
            location = [*prefix, *problem["loc"]]
            kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
            if kind == "extra_forbidden":
                hint = suggestion(str(location[-1]), known if len(problem["loc"]) == 1 else ())
                self.complain(location, f"unknown setting{hint}", key=True)
            elif kind == "missing":
                self.complain(location, "is missing")
            else:
                given = problem["input"]
                got = f", got {shown(given)}" if isinstance(given, str | int | float | bool | None) else ""
                self.complain(location, message[:1].lower() + message[1:] + got)

    def line(self, location: Location, *, key: bool = False) -> int:
        """The line, from 1, of the deepest part of `location` that the file has."""
        node, line = self.root, self.root.start_mark.line
        for step in location:
            child = _child(node, step)
            if child is None:
                continue  # pydantic also names the branch of a union, which is nowhere in the file
            key_node, node = child
            line = (key_node if key or isinstance(node, yaml.MappingNode) else node).start_mark.line
        return line + 1

    def raise_problems(self) -> None:
        """Raise `SuiteError` with all problems, if there are any."""
        if self.problems:
            raise SuiteError(self.source, self.problems)


def load_yaml(text: str, source: str) -> Any:
    """What a YAML document says, within the limits of this module. Raises `SuiteError`, with the line."""
    return _load(text, source)[1]


def _load(text: str, source: str) -> tuple[yaml.Node | None, Any]:
    """The document as nodes and as data."""
    if len(text.encode(errors="surrogatepass")) > MOST_BYTES:
        raise _too_long(source)
    loader = None
    try:
        loader = _Loader(text)  # which looks at every character
        root = loader.get_single_node()
        return root, loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SuiteError(source, [(mark.line + 1 if mark else 1, error.problem or "this is not YAML")]) from None
    except yaml.reader.ReaderError as error:  # a character that YAML forbids
        line = text[: error.position].count("\n") + 1
        raise SuiteError(source, [(line, f"the character #x{error.character:04x} is not allowed")]) from None
    except yaml.YAMLError as error:
        raise SuiteError(source, [(1, " ".join(str(error).split()))]) from None
    except (ValueError, OverflowError):  # PyYAML's scanner makes numbers of what an escape or a directive says
        raise SuiteError(source, [(loader.line + 1 if loader else 1, "a number here is too large")]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _too_long(source: str) -> SuiteError:
    return SuiteError(source, [(1, f"the file has more than {MOST_BYTES:,} bytes, which no such file needs")])


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """Key and value of `step` in a node; of a list, the item twice."""
    if isinstance(node, yaml.MappingNode):
        return next(((k, v) for k, v in node.value if k.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _repeated_keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


def _dotted(location: Location) -> str:
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in location]
    return "".join(parts).removeprefix(".")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` or `; there are ...`, to be put behind a message about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}" if known else ""
