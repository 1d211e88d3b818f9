"""The command `mixerzoo`. Exit codes: 0 all well, 1 some case or check is not ok, 2 a mistake in what was asked,
3 stopped by --minutes, 130 interrupted: both can go on.

What takes long to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import (
    cli_doctor,
    cli_import,
    cli_inspect,
    cli_layouts,
    cli_mixers,
    cli_plan,
    cli_repair,
    cli_run,
    cli_status,
    cli_train,
)
from .progress import complain

COMMAND_GROUP = "mixerzoo.commands"


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
    app.command("run")(cli_run.run_command)
    app.command("plan")(cli_plan.plan_command)
    app.command("status")(cli_status.status_command)
    app.command("repair")(cli_repair.repair_command)
    app.command("train")(cli_train.train_command)
    app.command("inspect")(cli_inspect.inspect_command)
    app.command("import")(cli_import.import_command)
    for entry in entry_points(group=COMMAND_GROUP):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # what it says of its failure is said below, once
                loaded = entry.load()
            app.command(entry.name)(loaded)
        except (Exception, SystemExit) as error:  # somebody else's code must not take the other commands away
            complain(f"the command {entry.name!r} ({entry.value}) could not be loaded: {error}", style="yellow")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (default `sys.argv`) and exit. A user's mistake is one red message, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        build_app()(arguments)
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        complain(str(error) or type(error).__name__)
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(cli_run.INTERRUPTED)


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


if __name__ == "__main__":
    main()
