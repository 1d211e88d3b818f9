"""YAML that remembers where everything stands, so that a mistake is reported with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

Location = Sequence["str | int"]


class SuiteError(ValueError):
    """A suite that cannot be run; the message lists every mistake with its file and line."""

    def __init__(self, source: str, problems: Iterable[tuple[int, str]]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(f"{source}:{line}: {message}" for line, message in self.problems))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 4e-3 for text; everybody who writes a learning rate means a number."""


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
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            data = loader.construct_document(root) if root is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise SuiteError(source, [(mark.line + 1 if mark else 1, error.problem or "this is not YAML")]) from None
        except yaml.YAMLError as error:  # a character that YAML forbids
            raise SuiteError(source, [(1, " ".join(str(error).split()))]) from None
        finally:
            loader.dispose()
        if root is None or not isinstance(data, dict):
            raise SuiteError(source, [(1, "a suite is a mapping of settings, e.g. `name: mine`")])
        file = cls(source, data, root)
        file.problems += [(line, f"{key!r} stands here twice") for line, key in _repeated_keys(root)]
        return file

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
                shown = f", got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
                self.complain(location, message[:1].lower() + message[1:] + shown)

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
