"""The commands of this package, found by the command line through the entry point group `mixerzoo.commands`."""

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


def publish(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder of the site; made if need be.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of runs; none to make the pages anew.")
    ] = None,
    home: Annotated[str | None, typer.Option(help="The address that the site is published at, for its feed.")] = None,
    micro: Annotated[Path | None, typer.Option(metavar="FILE", help="The history that `make micro` keeps.")] = None,
) -> None:
    """Build or extend a static site of runs: index, leaderboards, history, Atom feed. All of the runs, or none."""
    from .publish import publish as publish_runs  # here, because drawing libraries take a second to load

    done = publish_runs(runs or [], to, home, micro)
    for name in done.added:
        typer.echo(f"added {name}")
    for name in done.unchanged:
        typer.echo(f"{name} is there already")
    typer.echo(f"The site is at {done.index}")
