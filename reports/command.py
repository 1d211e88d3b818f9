"""Commands on runs, found by the command line through the entry point group `mixerzoo.commands`."""

from __future__ import annotations

import contextlib
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from .compare import Comparison

Format = Literal["csv", "parquet", "json", "latex", "markdown", "bibtex"]


# what code raises that is given a text where a number or a table should be
_MISSHAPEN = (AttributeError, TypeError, LookupError, ArithmeticError, AssertionError, RuntimeError)


@contextlib.contextmanager
def _of_runs(*runs: Path) -> Iterator[None]:
    """Read and show runs. A file that is JSON, but not what was written there, is a mistake of whoever edited it."""
    try:
        yield
    except _MISSHAPEN as error:
        raise ValueError(
            f"{', '.join(map(str, runs))}: something in it is not what mixerzoo writes there ({type(error).__name__}: "
            f"{error}); was a file edited? If not, it is a fault of mixerzoo, and --traceback says where"
        ) from error


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as `mixerzoo run` made it.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a run's report into its folder: report.html, report.md, summary.csv, tables and charts."""
    from .page import write_report  # here, because drawing libraries take a second to load

    with _of_runs(run):
        page = write_report(run)
    typer.echo(f"The report is at {page}")
    if open_page:
        webbrowser.open(page.as_uri())


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_A RUN_B", help="Run folders; each is compared with the first.")
    ],
    fail: Annotated[
        str | None,
        typer.Option(
            "--fail-on-regression",
            metavar="PERCENT",
            help="Exit with 1 if a regression is worse by more than this (5%: 5 % of what it was before; of recall "
            "and of seeds taught 5 points), or a case that ended ok does not any more. A regression is a number "
            "whose whole 95 % interval is worse than before, also after the correction for all numbers compared; "
            "bytes, if they grew by more than 1 %.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it too, as .md, .csv or .json by its ending.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also show what is equal and what cannot be told.")] = False,
) -> None:
    """Compare runs with the first of them: regressions and gains, and what cannot be compared and why."""
    from rich.console import Console

    from . import compare_text
    from .compare import TOLERANCE, compare

    if len(runs) < 2:
        raise ValueError("compare needs two runs or more, the first being the baseline")
    write = _writer(out)
    tolerance = _percent(fail) if fail is not None else None
    with _of_runs(*runs):
        found = [compare(runs[0], run, TOLERANCE if tolerance is None else tolerance) for run in runs[1:]]
    console = Console()
    for comparison in found:
        for part in compare_text.terminal(comparison, every, tolerance):
            console.print(part, highlight=False)
    if write is not None:
        write(found, tolerance)
    if tolerance is not None and any(comparison.beyond(tolerance) for comparison in found):
        raise typer.Exit(1)


def _percent(text: str) -> float:
    """`5%` or `5` as 0.05."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise ValueError(f"--fail-on-regression takes a percentage such as 5%, got {text!r}")
    return share


def _writer(out: Path | None) -> Callable[[list[Comparison], float | None], None] | None:
    """Writes comparisons to a file by its ending. Raises `ValueError` for one that is not known."""
    from ..benchmarks.runs import write_atomically
    from . import compare_text

    if out is None:
        return None
    makers: dict[str, Callable[[list[Comparison], float | None], str]] = {
        ".md": compare_text.as_markdown,
        ".csv": lambda found, _: compare_text.as_table(found).to_csv(index=False),
        ".json": compare_text.as_json,
    }
    if out.suffix not in makers:
        raise ValueError(f"--out takes a file that ends in {', '.join(makers)}, got {str(out)!r}")
    return lambda found, tolerance: write_atomically(out, makers[out.suffix](found, tolerance))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="csv, parquet (needs pyarrow), latex (booktabs) and markdown are of one table; json holds the whole "
            "run, bibtex the papers of its mixers.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to; default standard output.")] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="summary (every number; the default of csv and parquet), scoreboard (layouts by questions; the "
            "default of latex and markdown) or a table of the page, by its name.",
        ),
    ] = None,
) -> None:
    """Write a run's numbers and tables for other programs."""
    from ..benchmarks.runs import write_atomically
    from .export import export
    from .tables import read_run

    with _of_runs(run):
        content = export(read_run(run), form, table)
    if out is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_atomically(out, content)


def publish(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder of the site; made if need be.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of runs; none to make the pages anew.")
    ] = None,
    home: Annotated[str | None, typer.Option(help="The address that the site is published at, for its feed.")] = None,
    docs: Annotated[
        str | None,
        typer.Option(metavar="LINK", help="The documentation: its address, or a path from the site's index."),
    ] = None,
    micro: Annotated[Path | None, typer.Option(metavar="FILE", help="The history that `make micro` keeps.")] = None,
) -> None:
    """Build or extend a static site of runs: index, leaderboards, history, Atom feed. All of the runs, or none."""
    from .publish import publish as publish_runs  # here, because drawing libraries take a second to load

    with _of_runs(to, *(runs or [])):
        done = publish_runs(runs or [], to, home, docs, micro)
    for name in done.added:
        typer.echo(f"added {name}")
    for name in done.unchanged:
        typer.echo(f"{name} is there already")
    typer.echo(f"The site is at {done.index}")
