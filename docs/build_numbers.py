"""Writes the numbers of published runs into README.md and docs/; `make numbers` runs it.

    python docs/build_numbers.py            # writes what the runs say now
    python docs/build_numbers.py --check    # names the lines where a page and its run have parted

A number stands between two comments, which no rendered page shows: `<!-- = recall("quick", "softmax", 32, 256) -->`
before it, `<!-- / -->` behind it. The first calls a function of reports/numbers.py, with the name of a folder of
reports/published and then literals. Numbers that no published run gives are in numbers_by_hand.yaml, with the reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mixerzoo.benchmarks.runs import write_atomically
from mixerzoo.reports import RunData, read_run
from mixerzoo.reports.numbers import FUNCTIONS, NumberError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "reports" / "published"
MARKED = re.compile(r"<!-- = (?P<call>[^\n]+?) -->(?P<text>.*?)<!-- / -->", re.DOTALL)


@dataclass(frozen=True)
class Number:
    """A marker of a page. line: from 1. text: what the page says now; value: what the run says."""

    line: int
    call: str
    text: str
    value: str


@lru_cache
def published(name: str) -> RunData:
    """A published run. Raises `NumberError` if there is none of this name."""
    if not re.fullmatch(r"[\w-]+", name) or not (PUBLISHED / name).is_dir():
        raise NumberError(f"there is no published run {name!r}")
    return read_run(PUBLISHED / name)


def pages() -> list[Path]:
    """Those that may have markers; docs/zoo has a generator of its own."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def evaluate(call: str) -> str:
    """What `recall("quick", "softmax", 32, 256)` gives. Raises `NumberError` for anything but such a call."""
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise NumberError(f"give one of {', '.join(FUNCTIONS)}")
        run, *arguments = [ast.literal_eval(argument) for argument in node.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return FUNCTIONS[node.func.id](published(run), *arguments, **named)
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise NumberError(f"{type(error).__name__}: {error}") from error


def numbers(page: str, name: str) -> Iterator[Number]:
    """The markers of the text of a page, evaluated. Raises `NumberError` with page and line."""
    opened, closed = page.count("<!-- = "), page.count("<!-- / -->")
    found = list(MARKED.finditer(page))
    if not opened == closed == len(found) or any("<!-- = " in match["text"] for match in found):
        raise NumberError(f"{name}: {opened} markers `<!-- = ... -->` and {closed} ends `<!-- / -->` do not pair")
    for match in found:
        line = page.count("\n", 0, match.start()) + 1
        try:
            value = evaluate(match["call"])
        except NumberError as error:
            raise NumberError(f"{name}:{line}: {match['call']}: {error}") from error
        starts_line = page[: match.start()].rpartition("\n")[2].strip(" -*") == ""
        if starts_line and "\n" not in value:
            raise NumberError(f"{name}:{line}: a comment that begins a line ends the paragraph; put a word before it")
        yield Number(line, match["call"], match["text"], value)


def written(page: str, name: str) -> str:
    """The text of a page with the numbers of the runs."""
    values = iter([found.value for found in numbers(page, name)])
    return MARKED.sub(lambda match: f"<!-- = {match['call']} -->{next(values)}<!-- / -->", page)


def parted(page: str, name: str) -> list[str]:
    """A line for each number of a page that is not that of its run."""
    return [
        f"{name}:{n.line}: the page says {n.text.strip()!r}, the run {n.value.strip()!r} by {n.call}; `make numbers`"
        for n in numbers(page, name)
        if n.text != n.value
    ]


def main(arguments: list[str]) -> int:
    found: list[str] = []
    for path in pages():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        found += parted(text, name)
        if arguments != ["--check"]:
            write_atomically(path, written(text, name))
    print("\n".join(found))
    return 1 if found and arguments == ["--check"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NumberError as error:
        sys.exit(f"error: {error}")
