"""`mixerzoo report`: the command, found by the CLI through the entry point group `mixerzoo.commands`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..benchmarks.runs import RunError


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run, as `mixerzoo run` made it.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a run's report into its folder: report.html, report.md, summary.csv, tables and charts."""
    from .page import write_report  # drawing libraries take a second to import, which other commands need not pay

    try:
        page = write_report(run)
    except RunError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"The report is at {page}")
    if open_page:
        webbrowser.open(page.as_uri())
