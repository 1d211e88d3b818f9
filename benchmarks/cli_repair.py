"""The command `mixerzoo repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def repair_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that nobody works on.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Mend a run whose files were damaged: say what was wrong and what was done about it, line by line.

    Every result that is whole is kept, and every damaged file stays beside the mended one as NAME.damaged-1.
    Exit code: 0 the run is whole, 1 something is lost or cannot be mended, 2 no run, or somebody works on it.
    """
    from .progress import shown
    from .repair import repair
    from .runs import Run

    console = Console()
    done = repair(Run(folder), dry_run)
    for found in done.found:
        style = "red" if found.lost else "yellow"
        text = f"[{style}]{shown(found.where)}[/] {shown(found.what)}: {shown(found.done)}"
        console.print(text, highlight=False, soft_wrap=True)
    for case in done.again:
        console.print(f"[red]lost[/]: {shown(case)}; it runs again at the next start", highlight=False, soft_wrap=True)
    console.print(_summary(bool(done.found), done.whole, dry_run), highlight=False, soft_wrap=True)
    raise typer.Exit(0 if done.whole else 1)


def _summary(damaged: bool, whole: bool, dry_run: bool) -> str:
    if not damaged:
        return "[green]nothing is damaged[/]; nothing was changed"
    after = "would be" if dry_run else "is"
    said = f"the run {after} whole again" if whole else "not everything could be mended"
    return f"{said}{'; nothing was changed (--dry-run)' if dry_run else ''}"
