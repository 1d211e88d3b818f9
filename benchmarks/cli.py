"""The command `mixerzoo`. Exit codes: 0 all well, 1 some case or check is not ok, 2 a mistake in what was asked,
3 stopped by --minutes, 130 interrupted: both can go on.

What takes long to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import cli_doctor, cli_import, cli_inspect, cli_layouts, cli_mixers, cli_status, cli_train

if TYPE_CHECKING:
    from .plan import Planner
    from .runs import ResultLine, Run

COMMAND_GROUP = "mixerzoo.commands"
STOPPED, INTERRUPTED = 3, 130


def build_app() -> typer.Typer:
    """The application: the commands of this package, and those that others announce as `mixerzoo.commands`."""
    app = typer.Typer(
        help="A zoo of causal sequence mixers under one contract, and a laboratory that compares them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_global_options)
    app.command("list")(cli_mixers.list_command)
    app.command("show")(cli_mixers.show_command)
    app.command("check")(cli_mixers.check_command)
    app.command("doctor")(cli_doctor.doctor_command)
    app.command("layouts")(cli_layouts.layouts_command)
    app.command("suites")(suites_command)
    app.command("run")(run_command)
    app.command("status")(cli_status.status_command)
    app.command("train")(cli_train.train_command)
    app.command("inspect")(cli_inspect.inspect_command)
    app.command("import")(cli_import.import_command)
    for entry in entry_points(group=COMMAND_GROUP):
        try:
            app.command(entry.name)(entry.load())
        except Exception as error:  # somebody else's code: whatever it raises must not take the other commands away
            _complain(f"the command {entry.name!r} ({entry.value}) could not be loaded: {error}", style="yellow")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (default `sys.argv`) and exit. A user's mistake is one red message, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        build_app()(arguments)
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        _complain(str(error) or type(error).__name__)
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"mixerzoo {version('mixerzoo')}", highlight=False)
        raise typer.Exit


def _global_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Options before the command; `--traceback` is read by `main`."""


def suites_command() -> None:
    """The bundled suites."""
    from .device import choose_device
    from .plan import Planner, everything
    from .suite import bundled_suites, load_suite

    cli_mixers.load_plugins()
    device = choose_device("auto")
    table = Table("name", "layouts", "cases, at most", "description")
    for name in bundled_suites():
        suite = load_suite(name)
        cases = len(everything(Planner(suite, device), {}))
        table.add_row(name, str(len(suite.layouts)), str(cases), escape(suite.settings.description))
    Console().print(table)


def run_command(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A bundled suite, or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/SUITE-TIME.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only layouts or measures that match this pattern; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N for one of several GPUs.")] = "auto",
    jobs: Annotated[int | None, typer.Option(min=1, help="Cases at a time; speed and memory run alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cases and run nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what did not end ok.")] = False,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Another run whose models and answers serve here too; may be repeated.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after so long; the next start goes on where this one stopped.")
    ] = None,
    scale: Annotated[
        Literal["full", "toy"], typer.Option(help="toy: the same at tiny sizes, on any device, to see that it runs.")
    ] = "full",
    estimate: Annotated[bool, typer.Option(help="Say before the start how long it takes, and how much memory.")] = True,
    doctor: Annotated[bool, typer.Option(help="On CUDA, prove backends first that were not: see the doctor.")] = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rebuild the run's page as cases finish, never beside one that is timed.")
    ] = False,
) -> None:
    """Run a suite; running it again with the same --out runs only what is missing.

    `mixerzoo status RUN` in a second terminal says how it goes.
    """
    from .device import choose_device
    from .estimate import estimate_run
    from .live import Several
    from .plan import Planner
    from .progress import StatusFile, reporter_for
    from .runner import Limits, TimeIsUp, check_folder, execute
    from .runs import Run
    from .scale import toy
    from .suite import load_suite
    from .watch import PageWatch

    for source, error in cli_mixers.load_plugins().items():
        _complain(f"the plug-in {source} could not be loaded: {error}", style="yellow")
    loaded, console = load_suite(suite), Console()
    if scale == "toy":
        loaded = toy(loaded)
        os.environ.setdefault("TRITON_INTERPRET", "0" if device.startswith("cuda") else "1")
    settings = loaded.settings
    place = choose_device(device, settings.device)
    resolved = loaded.on(place).resolved()
    planner = Planner(loaded.select(only), place)
    others = [Run(folder) for folder in reuse or ()]
    run = Run(out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}")
    check_folder(run, resolved, place)
    if dry_run:
        console.print(_case_table(planner, run))
    if estimate:
        console.print(estimate_run(planner, run, place, jobs or settings.jobs).text(), highlight=False, soft_wrap=True)
    if dry_run:
        return
    begun = time.monotonic()
    examined = cli_doctor.before_run(loaded.select(only), place, doctor, console)
    seconds = None if minutes is None else max(0.0, 60 * minutes - (time.monotonic() - begun))
    limits = Limits(jobs or settings.jobs, settings.time_limit_seconds, settings.memory_limit_bytes, seconds)
    options = {"--only": only, "--device": device, "--jobs": jobs, "--reuse": reuse, "--scale": scale}
    again = _again(suite, run, options, watch)
    page = PageWatch(run, console) if watch else None
    reporter = Several(StatusFile(run, again), reporter_for(console), *([page] if page else []))
    try:
        results = execute(
            planner,
            run,
            resolved,
            limits,
            reporter,
            device=place,
            retry_failed=retry_failed,
            reuse=others,
            doctor=examined,
        )
    except (KeyboardInterrupt, TimeIsUp) as stop:
        why, code = (str(stop), STOPPED) if isinstance(stop, TimeIsUp) else ("interrupted", INTERRUPTED)
        if page and code == STOPPED:
            page.rebuild()
        _complain(f"{why}; finished cases are kept, go on with: {shlex.join(again)}", style="yellow")
        raise typer.Exit(code) from None
    if page:
        page.rebuild()
    failed = _print_results(console, results, run)
    raise typer.Exit(1 if failed else 0)


def _again(suite: str, run: Run, options: dict[str, Any], watch: bool) -> list[str]:
    """The command that goes on with `run`: with all options that decide what is run, and how."""
    words = ["mixerzoo", "run", suite, "--out", str(run.folder)]
    for name, given in options.items():
        default = {"--device": "auto", "--scale": "full"}.get(name)
        values = given if isinstance(given, list) else [given]
        words += [word for value in values if value not in (None, default) for word in (name, str(value))]
    return [*words, *(["--watch"] if watch else [])]


def _case_table(planner: Planner, run: Run) -> Table:
    from .progress import status_text

    done = {r.case: r for r in run.results()} if run.exists else {}
    plan = planner(done)
    grows = "" if plan.final else "; more follow from their results"
    table = Table("case", "layout", "measure", "sizes", "seed", "status", title=f"{len(plan.cases)} cases{grows}")
    for case in plan.cases:
        status = status_text(done[case.id].status) if case.id in done else "to run"
        table.add_row(case.id, escape(case.label), case.measure, case.sizes, str(case.seed), status)
    return table


def _print_results(console: Console, results: Sequence[ResultLine], run: Run) -> int:
    """The tables that end a run; returns how many cases are not ok."""
    from .summary import failure_table, summary_tables

    for title, table in summary_tables(results).items():
        console.print(f"\n[bold]{escape(title)}[/]", highlight=False)
        console.print(table)
    failures = failure_table(results)
    if failures is not None:
        console.print("\n[bold red]not ok[/]")
        console.print(failures)
    failed = sum(r.status != "ok" for r in results)
    kept = f", {failed} not ok" if failed else ""
    console.print(f"{len(results)} cases{kept}; the run is in {escape(str(run.folder) + os.sep)}", soft_wrap=True)
    return failed


def _complain(message: str, style: str = "red") -> None:
    Console(stderr=True).print(f"[{style}]{escape(message)}[/]", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
