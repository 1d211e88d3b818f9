"""The command `mixerzoo train`: one model, alone or by several processes under `torchrun`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import cli_mixers

if TYPE_CHECKING:
    from .doing import Doing
    from .doing import Progress as Report

LINE_SECONDS = 60.0  # between two lines about the progress where there is no terminal


def train_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML with model, task, training and seed.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the model; default runs/train-TIME.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N for one of several GPUs.")] = "auto",
) -> None:
    """Train one model; the same command with the same --out goes on with a training that was interrupted.

    By several processes: torchrun --nproc-per-node 2 -m mixerzoo.benchmarks.cli train FILE --out FOLDER, with
    parallel: ddp or parallel: fsdp in the file's training.
    """
    from ..mixers.tf32 import tf32
    from .device import choose_device
    from .precision import allows_tf32
    from .train_file import load_train_file
    from .training import train_or_load
    from .training.distributed import process_group

    cli_mixers.load_plugins()
    loaded = load_train_file(file)
    several = "RANK" in os.environ
    if several and out is None:
        raise ValueError("several processes need one folder: give --out FOLDER")
    folder = out or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"
    console = Console(quiet=several and os.environ["RANK"] != "0")
    with (
        process_group(choose_device(device)) as own,
        tf32(allows_tf32("auto", loaded.training.precision, own)),
        report_to(console) as progress,
    ):
        _, record = train_or_load(
            loaded.config,
            loaded.task,
            loaded.training,
            seed=loaded.seed,
            device=own,
            folder=folder,
            progress=progress,
        )
    console.print(record_table(record))
    console.print(f"the model and its log are in {escape(str(folder) + os.sep)}", soft_wrap=True)


@contextlib.contextmanager
def report_to(console: Console) -> Iterator[Report]:
    """Tells how a training goes: a bar on a terminal, now and then a line elsewhere."""
    if not console.is_terminal:
        yield _Lines(console).tell
        return
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, refresh_per_second=2) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=escape(str(text)))


class _Lines:
    """A line at the start, at the end, and one a minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._spoke = console, float("-inf")

    def tell(self, fraction: float, text: str | Doing) -> None:
        now = time.monotonic()
        if fraction >= 1 or now - self._spoke >= LINE_SECONDS:
            self._spoke = now
            self._console.print(f"{fraction:4.0%} {escape(str(text))}", highlight=False, soft_wrap=True)


def record_table(record: dict[str, Any]) -> Table:
    """What matters of a training's record, see `train`."""
    table = Table(show_header=False, title="training", title_justify="left")
    table.add_row("loss at the end", f"{record['curve'][-1][1]:.4f} nats")
    table.add_row("steps, tokens", f"{record['steps']:,}, {record['tokens']:,}")
    table.add_row("seconds", f"{record['seconds']:,.1f}")
    if (bar := record["bar"]) is not None:
        solved = record["tokens_to_solve"]
        table.add_row("tokens to solve", "-" if solved is None else f"{solved:,}")
        load = "" if bar["load"] is None else f", load {bar['load']}"
        where = f"{bar['reached']:.1%} right at {bar['length']:,} tokens{load}; the bar is {bar['accuracy']:.1%}"
        verdict = "[green]taught[/]" if bar["passed"] else f"[yellow]not taught in {record['tokens']:,} tokens[/]"
        table.add_row("bar", f"{verdict}: {where}")
    return table
