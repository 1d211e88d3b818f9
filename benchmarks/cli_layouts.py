"""The command that lists layouts by name."""

from __future__ import annotations

import fnmatch
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def layouts_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names, e.g. 'gdn*'.")] = "*",
) -> None:
    """The layouts that have a name, which may stand wherever a layout line is read."""
    from ..models import LAYOUTS

    names = fnmatch.filter(LAYOUTS, pattern)
    if not names:
        raise ValueError(f"no layout matches {pattern!r}; `mixerzoo layouts` shows all")
    table = Table()
    table.add_column("name, source", overflow="fold")
    table.add_column("layout, note", overflow="fold", ratio=1)
    for name in names:
        layout = LAYOUTS[name]
        note = f"\n[dim]{escape(layout.note)}[/]" if layout.note else ""
        table.add_row(f"[bold]{name}[/]\n[dim]{escape(layout.source)}[/]", f"{escape(layout.line)}{note}")
    Console().print(table)
