"""`mixerzoo report`: the command, found by the command line through the entry point group `mixerzoo.commands`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as `mixerzoo run` made it.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a run's report into its folder: report.html, report.md, summary.csv, tables and charts."""
    from .page import write_report  # here, because drawing libraries take a second to load

    page = write_report(run)
    typer.echo(f"The report is at {page}")
    if open_page:
        webbrowser.open(page.as_uri())
