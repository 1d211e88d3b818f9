"""The command `mixerzoo status`: how a run goes, asked from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def status_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, at work or not.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON; with --follow, one for each change.")
    ] = False,
) -> None:
    """Say how a run goes: what is done, at work and to do, what failed, and the time left.

    Exit code: 0 finished or at work, 1 some case failed, 2 no run, 3 stopped before its end: it can go on.
    """
    from .overview import Onlooker, follow_run
    from .runs import Run

    console, look = Console(), Onlooker(Run(folder))
    try:
        found = follow_run(look, console, as_json) if follow else look()
    except KeyboardInterrupt:
        found = look()
    if as_json:
        print(found.to_json())
    else:
        console.print(found.render(console.width), highlight=False, soft_wrap=not console.is_terminal)
    raise typer.Exit(found.exit_code)
