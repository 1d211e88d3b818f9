"""`mixerzoo plan`, and what `mixerzoo run` says before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from . import cli_mixers
from .forecast import SOURCES
from .progress import shown

if TYPE_CHECKING:
    from .case import Case
    from .estimate import Estimate
    from .estimator import Guess
    from .history import History
    from .runs import Run

HOUR = 3600.0
_WHAT_IT_IS_FROM = {
    "measured": "the same case in an earlier run on such a machine",
    "scaled": "the same model and measure at other sizes",
    "counted": "FLOPs, bytes and operations, at the rates of the machine",
    "not known": "nothing: in no sum",
}


def plan_command(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A bundled suite, or a YAML file.")],
    machines: Annotated[int, typer.Option(min=1, help="How many machines like this one share the cases.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only layouts or measures that match this pattern; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N for one of several GPUs.")] = "auto",
    jobs: Annotated[int | None, typer.Option(min=1, help="Cases at a time on a machine.")] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option("--from", help="An earlier run to go by; may be repeated. Default: all in runs/, and published."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of an hour of a machine, for the cost.")] = None,
    out: Annotated[Path | None, typer.Option(help="A run that was begun: only what is missing there.")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Another run whose models and answers serve here too; may be repeated.")
    ] = None,
) -> None:
    """What a suite will take, before anything is run: cases, time, memory, disk, cost, each with how sure that is."""
    from .device import choose_device
    from .estimate import estimate_run
    from .known import known_results
    from .plan import Planner
    from .runner import check_folder
    from .runs import Run
    from .suite import load_suite

    cli_mixers.load_plugins()
    loaded, console = load_suite(suite), Console()
    place = choose_device(device, loaded.settings.device)
    run = None if out is None else Run(out)
    if run is not None:
        check_folder(run, loaded.on(place).resolved(), place)
    estimate = estimate_run(
        Planner(loaded.select(only), place),
        {} if run is None else known_results(run),
        place,
        jobs or loaded.settings.jobs,
        earlier_history(earlier, run),
        machines=machines,
        reuse=[Run(folder) for folder in reuse or ()],
    )
    show_plan(console, estimate, price)


def earlier_history(folders: Sequence[Path] | None, begun: Run | None = None) -> History:
    """What earlier runs took: those in `folders`, by default all there are; and the one that is to go on.

    Raises `FileNotFoundError` for a folder that was named and holds no results.
    """
    from .history import read_history, usual_folders

    for folder in folders or ():
        if not (folder / "results.jsonl").is_file():
            raise FileNotFoundError(f"{folder} holds no results to go by; give --from the folder of a run")
    own = [begun.folder] if begun is not None and begun.exists else []
    return read_history(list(dict.fromkeys(folder.resolve() for folder in [*own, *(folders or usual_folders())])))


def show_plan(console: Console, estimate: Estimate, price: float | None = None) -> None:
    """All of an estimate."""
    if not estimate.guesses:
        console.print("nothing is left to run")
        return
    console.print(_case_table(estimate, console.width))
    console.print(_figure_table(estimate, price))
    for line in _remarks(estimate):
        console.print(line, highlight=False, soft_wrap=True)


def summary(estimate: Estimate) -> str:
    """All of it in one line."""
    if not estimate.guesses:
        return "nothing is left to run"
    taught = "" if _all_certain(estimate) else f", {duration(estimate.least)} if no layout is taught"
    sources = Counter(guess.source for _, guess in estimate.guesses)
    said = ", ".join(f"{sources[source]} {source}" for source in SOURCES if sources[source])
    most = "" if _all_certain(estimate) else "at most "
    return (
        f"estimate: {span(estimate.seconds, estimate.low, estimate.high)}{taught}; "
        f"{size(estimate.bytes)} of memory, {size(estimate.disk.total)} on disk; "
        f"{most}{_cases(len(estimate.guesses))}, {estimate.jobs} at a time: {said}"
    )


def _all_certain(estimate: Estimate) -> bool:
    return len(estimate.certain) == len(estimate.guesses)


def _cases(count: int) -> str:
    return f"{count:,} case{'s' * (count != 1)}"


def _case_table(estimate: Estimate, width: int) -> Table:
    """Layouts by measures; a row for each pair of them where there are too many to stand side by side."""
    cells: dict[tuple[str, str], list[tuple[Case, Guess]]] = {}
    for case, guess in estimate.guesses:
        cells.setdefault((case.label, case.measure), []).append((case, guess))
    measures = list(dict.fromkeys(measure for _, measure in cells))
    layouts = list(dict.fromkeys(layout for layout, _ in cells))
    certain = len(estimate.certain)
    follow = len(estimate.guesses) - certain
    title = _cases(certain) + (f", and {follow:,} more where a layout is taught" if follow else "")
    if 24 + 24 * len(measures) > width:
        table = Table("layout", "measure", "cases", "each", title=title)
        for (layout, measure), cell in cells.items():
            table.add_row(shown(layout), shown(measure), *_cell(cell, estimate.certain))
        return table
    table = Table("layout", *(shown(measure) for measure in measures), title=title)
    for layout in layouts:
        texts = (_cell(cells.get((layout, measure), []), estimate.certain) for measure in measures)
        table.add_row(shown(layout), *("" if not count else f"{count}: {each} each" for count, each in texts))
    return table


def _cell(cell: Sequence[tuple[Case, Guess]], certain: frozenset[str]) -> tuple[str, str]:
    """How many cases there are, and what each takes: the median."""
    if not cell:
        return "", ""
    sure = sum(case.id in certain for case, _ in cell)
    counts = [str(sure)] * (sure > 0) + [f"{len(cell) - sure} if taught"] * (sure < len(cell))
    seconds = [guess.seconds for _, guess in cell if guess.seconds is not None]
    return " + ".join(counts), duration(median(seconds)) if seconds else "[red]not known[/]"


def _figure_table(estimate: Estimate, price: float | None) -> Table:
    machines = f"{estimate.machines} machine{'s' * (estimate.machines != 1)}"
    table = Table("", "estimate", "what it is", title=f"{machines}: {shown(estimate.kind)}")
    known = "if all layouts are taught" if not _all_certain(estimate) else "all cases are certain"
    table.add_row("wall time", span(estimate.seconds, estimate.low, estimate.high), f"{known}; 8 in 10 lie within")
    if not _all_certain(estimate):
        table.add_row("", duration(estimate.least), "if none is")
    share = estimate.work / max(1e-9, estimate.seconds * estimate.machines * estimate.jobs)
    places = f"of the cases together, {estimate.jobs} at a time on a machine; {share:.0%} of the places are used"
    table.add_row("work", duration(estimate.work), places)
    table.add_row("memory", size(estimate.bytes), "of a machine at the worst, to about a half more or less")
    disk = estimate.disk
    parts = f"results {size(disk.results)}, models {size(disk.models)}, to resume from {size(disk.resume)}"
    table.add_row("disk", size(disk.total), f"{parts}; to about a third")
    hours = [bound * estimate.machines / HOUR for bound in (estimate.seconds, estimate.low, estimate.high)]
    table.add_row("machine-hours", _numbers(hours), "all machines, from the start to the end")
    if price is not None:
        table.add_row("cost", _numbers([price * each for each in hours]), f"at {price:g} an hour of a machine")
    return table


def _remarks(estimate: Estimate) -> Iterable[str]:
    """Where the figures are from, and what they leave out; rich markup."""
    counts, seconds = Counter[str](), dict.fromkeys(SOURCES, 0.0)
    for _, guess in estimate.guesses:
        counts[guess.source] += 1
        seconds[guess.source] += guess.seconds or 0.0
    for source in SOURCES:
        if counts[source] and source != "not known":
            share = f"{seconds[source] / max(1e-9, estimate.work):.0%} of the work"
            yield f"{source}: {_cases(counts[source])}, {share}: {_WHAT_IT_IS_FROM[source]}"
    if unknown := Counter(case.measure for case in estimate.unknown):
        found = ", ".join(f"{count:,} of {shown(measure)}" for measure, count in unknown.items())
        yield f"[yellow]not known: {found}; they are in no figure above but the number of cases[/]"
    if estimate.measured_rates:
        yield f"rates of this machine measured now, for threads and precision: {', '.join(estimate.measured_rates)}"
    for why in estimate.history.unread:
        yield f"[yellow]not gone by: {shown(why)}[/]"
    yield f"gone by {len(estimate.history.runs)} earlier runs; estimated in {estimate.took:.1f} s"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 10 min`, `3 days`: to about two digits."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        hours, rest = divmod(5 * round(minutes / 5), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{seconds / HOUR:.0f} h" if seconds < 72 * HOUR else f"{seconds / HOUR / 24:.1f} days"


def span(seconds: float, low: float, high: float) -> str:
    """`2 h 10 min (1 h 40 min to 3 h)`."""
    return f"{duration(seconds)} ({duration(low)} to {duration(high)})"


def size(count: float) -> str:
    """Bytes, SI: `1.2 GB`."""
    return decimal(round(count))


def _numbers(values: Sequence[float]) -> str:
    middle, low, high = (f"{value:.2g}" if value < 100 else f"{value:,.0f}" for value in values)
    return f"{middle} ({low} to {high})"
