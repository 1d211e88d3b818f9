"""A comparison of two runs as a terminal, a pull request and a program read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .change import Change
from .compare import Comparison, count, grouped, summary_line
from .formats import markdown, percent, plain

_TITLES = {
    "regression": "Regressions",
    "gain": "Gains",
    "changed": "Changed, and nobody knows which way is better",
    "cannot tell": "Cannot tell",
    "equal": "Equal",
}
_COLOURS = {"regression": "red", "gain": "green"}
_COLUMNS = ["Layout", "What", "Before", "After", "Change"]
_FOLDED = ("cannot tell", "equal")
RULE = (
    "In brackets: 95 % intervals. A number is a regression or a gain if its interval lies on one side of no change and "
    "it still does so after Holm's correction for all numbers of the comparison; bytes, which have no chance in "
    "them, if they changed by more than 1 %."
)


def terminal(found: Comparison, every: bool, tolerance: float | None) -> Iterator[RenderableType]:
    """What is printed: first what fails, then the tables, then what stands in the way of more."""
    yield f"[bold]{escape(str(found.after))}[/] compared with [bold]{escape(str(found.before))}[/]: {_counted(found)}"
    yield from (f"[yellow]{escape(warning)}[/]" for warning in found.warnings)
    yield from _cases("Ended ok before, and does not now", found.failed, "red")
    yield from _cases("Ends ok now, and did not before", found.recovered, "green")
    for verdict, title in _TITLES.items():
        changes = found.having(verdict)
        if changes and (every or verdict not in _FOLDED):
            yield _table(title, changes if every else _greatest(changes), _COLOURS.get(verdict, ""))
    for title, lines in _rest(found).items():
        yield from _cases(title, lines, "dim")
    yield f"[dim]{escape(RULE)}[/]"
    if tolerance is not None:
        yield _outcome(found, tolerance)


def as_markdown(comparisons: Sequence[Comparison], tolerance: float | None) -> str:
    """For a pull request: what counts stands open, the rest is folded."""
    parts = []
    for found in comparisons:
        parts.append(f"## {markdown(found.after)} compared with {markdown(found.before)}\n\n{_counted(found)}.")
        parts += [f"> {markdown(warning)}" for warning in found.warnings]
        parts += _listed("Ended ok before, and does not now", found.failed)
        parts += _listed("Ends ok now, and did not before", found.recovered)
        for verdict, title in _TITLES.items():
            if changes := found.having(verdict):
                greatest = _greatest(changes)
                parts += [] if verdict in _FOLDED else [f"### {title}\n\n{_markdown_table(greatest)}"]
                if verdict in _FOLDED or len(greatest) < len(changes):
                    parts.append(_folded(f"{title}, every number", _markdown_table(changes), len(changes)))
        for title, lines in _rest(found).items():
            parts.append(_folded(title, "\n".join(f"- {markdown(line)}" for line in lines), len(lines)))
        if tolerance is not None:
            parts.append(Text.from_markup(_outcome(found, tolerance)).plain)
    return "\n\n".join([*parts, RULE]) + "\n"


def as_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One changed number a row; failures and what was not compared are in the other formats."""
    rows = [
        {"before_run": str(found.before), "after_run": str(found.after), **asdict(change)}
        for found in comparisons
        for verdict in _TITLES
        for change in found.having(verdict)
    ]
    columns = ["before_run", "after_run", *Change.__dataclass_fields__]
    return pd.DataFrame(rows, columns=columns)


def as_json(comparisons: Sequence[Comparison], tolerance: float | None) -> str:
    """Everything, as one document; numbers that are not finite are null."""
    documents = []
    for found in comparisons:
        known = {**asdict(found), "before": str(found.before), "after": str(found.after), "counts": summary_line(found)}
        for side in ("only_before", "only_after"):
            cases = getattr(found, side).items()
            known[side] = [{"measure": m, "layout": layout, "cases": number} for (m, layout), number in cases]
        beyond = None if tolerance is None else found.beyond(tolerance)
        documents.append({**known, "tolerance": tolerance, "regressions_beyond_tolerance": beyond})
    return (
        json.dumps(
            {"schema_version": 1, "comparisons": plain(documents)}, indent=2, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )


def _counted(found: Comparison) -> str:
    """`1 case fails now, 2 regressions, 40 cannot tell`."""
    parts = [f"{len(found.failed)} no longer ok"] if found.failed else []
    parts += [f"{len(found.recovered)} ok again"] if found.recovered else []
    plural = {"regression": "regressions", "gain": "gains"}
    counted = summary_line(found).items()
    parts += [f"{number} {plural.get(name, name) if number != 1 else name}" for name, number in counted]
    return ", ".join(parts)


def _rest(found: Comparison) -> dict[str, list[str]]:
    """Title -> lines of what was not compared and of what else differs."""
    context = [f"{name}: {old} before, {new} after" for name, (old, new) in found.context.items()]
    rest = {
        "Not compared": grouped(found.refused),
        f"Cases only in {found.before}": list(count(found.only_before)),
        f"Cases only in {found.after}": list(count(found.only_after)),
        "What else differs": context,
    }
    return {title: lines for title, lines in rest.items() if lines}


def _outcome(found: Comparison, tolerance: float) -> str:
    number = found.beyond(tolerance)
    if not number:
        return f"[green]Nothing fails the tolerance of {percent(tolerance)}.[/]"
    return f"[red]{number} {'fails' if number == 1 else 'fail'} the tolerance of {percent(tolerance)}.[/]"


def _cases(title: str, lines: list[str], style: str) -> Iterator[str]:
    if lines:
        yield f"[{style}]{escape(title)}[/]\n" + "\n".join(f"  {escape(line)}" for line in lines)


def _greatest(changes: Sequence[Change]) -> list[Change]:
    """Of each layout and measure the greatest change, which says of how many it is."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.layout, change.measure), []).append(change)
    of = {key: f" (the greatest of {len(own)})" if len(own) > 1 else "" for key, own in groups.items()}
    return [replace(own[0], what=f"{own[0].what}{of[key]}") for key, own in groups.items()]


def _row(change: Change) -> list[str]:
    text = change.text + (f" ({change.note})" if change.note else "")
    return [change.layout, f"{change.measure}: {change.what}", change.before, change.after, text]


def _table(title: str, changes: Sequence[Change], colour: str) -> Table:
    style = f"bold {colour}".strip()
    table = Table(title=title, title_justify="left", title_style=style, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        value = name in ("Before", "After")
        table.add_column(name, justify="right" if value else "left", no_wrap=value, overflow="fold")
    for change in changes:
        table.add_row(*map(escape, _row(change)))
    return table


def _markdown_table(changes: Sequence[Change]) -> str:
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *([markdown(cell) for cell in _row(change)] for change in changes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _listed(title: str, lines: list[str]) -> list[str]:
    return [f"### {title}\n\n" + "\n".join(f"- {markdown(line)}" for line in lines)] if lines else []


def _folded(title: str, content: str, number: int) -> str:
    return f"<details><summary>{markdown(title)} ({number})</summary>\n\n{content}\n\n</details>"
