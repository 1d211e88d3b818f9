"""The command that takes over what another tool measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape


def import_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What pytest-benchmark, lm-evaluation-harness or fla's benchmarks wrote."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, which must not be there; default runs/FILE.")
    ] = None,
    format: Annotated[
        Literal["auto", "pytest-benchmark", "lm-eval", "fla"],
        typer.Option(help="Of the file; auto: what it looks like."),
    ] = "auto",
) -> None:
    """Make a run of what another tool measured, marked foreign: shown beside ours, never part of a claim."""
    from .foreign import import_file

    run = import_file(file, out or Path("runs") / file.stem, format)
    results, tool = run.results(), run.environment()["foreign"]["tool"]
    without = sum(result.status != "ok" for result in results)
    counted = f"{len(results)} values{f', {without} of them not finite,' if without else ''}"
    said = f"{counted} of {tool} are in {run.folder}, marked foreign; `mixerzoo report {run.folder}` makes their page"
    Console().print(escape(said), highlight=False, soft_wrap=True)
