"""`mixerzoo run`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import cli_doctor, cli_mixers, cli_plan
from .progress import complain

if TYPE_CHECKING:
    from .executors.base import Executor
    from .limits import Limits
    from .plan import Planner
    from .runs import Results, Run

STOPPED, INTERRUPTED = 3, 130


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
    executor: Annotated[
        Literal["local", "ray", "slurm"], typer.Option(help="What runs the cases: this machine, or an engine for many.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster to join: auto, or HOST:PORT; default one of our own.")
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of sbatch, for all jobs; may be repeated.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="How often a case is begun whose machine is lost.")] = 3,
    doctor: Annotated[bool, typer.Option(help="On CUDA, prove backends first that were not: see the doctor.")] = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rebuild the run's page as cases finish, never beside one that is timed.")
    ] = False,
) -> None:
    """Run a suite; running it again with the same --out runs only what is missing.

    `mixerzoo status RUN` in a second terminal says how it goes.
    """
    from .device import choose_device, usable_here
    from .estimate import estimate_run
    from .known import known_results
    from .limits import Limits
    from .live import Several
    from .plan import Planner
    from .progress import KeepForecast, StatusFile, reporter_for
    from .runner import TimeIsUp, check_folder, execute
    from .runs import Run
    from .scale import toy
    from .suite import load_suite
    from .watch import PageWatch

    failed_plugins = cli_mixers.load_plugins()
    for source, error in failed_plugins.items():
        complain(f"the plug-in {source} could not be loaded: {error}", style="yellow")
    loaded, console = load_suite(suite), Console()
    if scale == "toy":
        loaded = toy(loaded)
        os.environ.setdefault("TRITON_INTERPRET", "0" if device.startswith("cuda") else "1")
    settings = loaded.settings
    place = choose_device(device, settings.device, elsewhere=executor != "local")
    estimate = estimate and usable_here(place)  # it tries the layouts there
    resolved = loaded.on(place).resolved()
    planner = Planner(loaded.select(only), place)
    others = [Run(folder) for folder in reuse or ()]
    run = Run(out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}")
    check_folder(run, resolved, place)
    limits = Limits(jobs or settings.jobs, settings.time_limit_seconds, settings.memory_limit_bytes, attempts=attempts)
    where = make_executor(executor, limits, place, address, slurm or [])
    estimated = None
    if estimate:
        history = cli_plan.earlier_history(None, run)
        estimated = estimate_run(planner, known_results(run), place, jobs or settings.jobs, history, reuse=others)
    if dry_run:
        console.print(_case_table(planner, run))
        if estimated is not None:
            cli_plan.show_plan(console, estimated)
        return
    if estimated is not None:
        more = "" if executor == "local" else "; for more machines than one: mixerzoo plan --machines N"
        console.print(cli_plan.summary(estimated) + more, highlight=False, soft_wrap=True)
    begun = time.monotonic()
    examined = cli_doctor.before_run(loaded.select(only), place, doctor, console)
    seconds = None if minutes is None else max(0.0, 60 * minutes - (time.monotonic() - begun))
    limits = dataclasses.replace(limits, run_seconds=seconds)
    options = {
        "--only": only, "--device": device, "--jobs": jobs, "--reuse": reuse, "--scale": scale, "--executor": executor,
        "--address": address, "--slurm": slurm, "--attempts": attempts,
    }  # fmt: skip
    again = _again(suite, run, options, watch)
    page = PageWatch(run, console) if watch else None
    told = [StatusFile(run, again), reporter_for(console), KeepForecast(run, estimated), page]
    reporter = Several(*(each for each in told if each is not None))
    notes = {"doctor": examined, "plugins_failed": failed_plugins}
    try:
        with terminated_like_interrupted():
            results = execute(
                planner,
                run,
                resolved,
                limits,
                reporter,
                where,
                device=place,
                retry_failed=retry_failed,
                reuse=others,
                notes=notes,
            )
    except (KeyboardInterrupt, TimeIsUp) as stop:
        why, code = (str(stop), STOPPED) if isinstance(stop, TimeIsUp) else ("interrupted", INTERRUPTED)
        if page and code == STOPPED:
            page.rebuild()
        complain(f"{why}; finished cases are kept, go on with: {shlex.join(again)}", style="yellow")
        raise typer.Exit(code) from None
    if page:
        page.rebuild()
    failed = _print_results(console, results, run)
    raise typer.Exit(1 if failed else 0)


def make_executor(name: str, limits: Limits, device: str, address: str | None, slurm: Sequence[str]) -> Executor:
    """The executor `name`. Raises `ValueError` for options of another one, and where what it needs is not installed."""
    if address is not None and name != "ray":
        raise ValueError("--address is of a Ray cluster; give --executor ray with it")
    if slurm and name != "slurm":
        raise ValueError("--slurm is for Slurm's jobs; give --executor slurm with it")
    if name == "local":
        from .executors.local import LocalExecutor

        return LocalExecutor(limits, device)
    if name == "slurm":
        from .executors.slurm import SlurmExecutor
        from .executors.slurm_options import parse_slurm_options

        return SlurmExecutor(limits, device, parse_slurm_options(slurm))
    if name == "ray":
        from .executors.ray import RayExecutor

        return RayExecutor(address, limits, device)
    raise AssertionError(name)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends a run like Ctrl-C: cases are stopped, results kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _again(suite: str, run: Run, options: dict[str, Any], watch: bool) -> list[str]:
    """The command that goes on with `run`: with all options that decide what is run, and how."""
    words = ["mixerzoo", "run", suite, "--out", str(run.folder)]
    for name, given in options.items():
        default = {"--device": "auto", "--scale": "full", "--executor": "local", "--attempts": 3}.get(name)
        values = given if isinstance(given, list) else [given]
        words += [word for value in values if value not in (None, default) for word in (name, str(value))]
    return [*words, *(["--watch"] if watch else [])]


def _case_table(planner: Planner, run: Run) -> Table:
    from .known import known_results
    from .progress import status_text

    done = known_results(run)
    plan = planner(done)
    grows = "" if plan.final else "; more follow from their results"
    table = Table("case", "layout", "measure", "sizes", "seed", "status", title=f"{len(plan.cases)} cases{grows}")
    for case in plan.cases:
        status = status_text(done[case.id].status) if case.id in done else "to run"
        table.add_row(case.id, escape(case.label), case.measure, case.sizes, str(case.seed), status)
    return table


def _print_results(console: Console, results: Results, run: Run) -> int:
    """The tables that end a run; returns how many cases are not ok."""
    from .summary import failure_table, summary_tables

    for title, table in summary_tables(results).items():
        console.print(f"\n[bold]{escape(title)}[/]", highlight=False)
        console.print(table)
    failures = failure_table(results.failed())
    if failures is not None:
        console.print("\n[bold red]not ok[/]")
        console.print(failures)
    failed = len(results.failed())
    kept = f", {failed} not ok" if failed else ""
    console.print(f"{len(results)} cases{kept}; the run is in {escape(str(run.folder) + os.sep)}", soft_wrap=True)
    return failed
