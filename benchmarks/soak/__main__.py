"""The command of the soak: `python -m mixerzoo.benchmarks.soak --kills 1000`."""

from __future__ import annotations

import json
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..environment import machine, source, utc_time
from ..runs import write_atomically
from .actions import ACTIONS, Action, Stage
from .kept import Broken
from .processes import adopt_orphans, descendants, signal_all

WHAT = tuple(sorted({action.what for action in ACTIONS}))


@dataclass
class Tally:
    """What was done so far. slowest: the most seconds until nothing was left of a run that was killed or stopped."""

    kills: int = 0
    folders: int = 0
    starts: int = 0
    cases: int = 0
    slowest: float = 0.0
    actions: Counter[str] = field(default_factory=Counter)


def soak_folder(stage: Stage, actions: Sequence[Action], stop_at: int, tally: Tally) -> None:
    """Run the plan of one folder to its end; what is done to it ends with `stop_at` kills. Raises `Broken`."""
    while True:
        if stage.runner is None:
            stage.runner = stage.start()
        if tally.kills < stop_at:
            _let_pass(stage, stage.runner)
        else:
            stage.wait_for(stage.runner, {0}, "left in peace")
        if stage.runner.poll() is not None:
            break
        action = stage.draw.choices(actions, [action.often for action in actions])[0]
        stage.done.append(action.name)
        if action.act(stage, stage.runner):
            tally.actions[action.name] += 1
            tally.kills += action.kills
        stage.kept.check()
    stage.wait_for(stage.runner, {0}, "left in peace")
    stage.clear()
    stage.kept.check_end(stage.temporary)
    tally.folders += 1
    tally.starts += stage.starts
    tally.cases += len(stage.kept.results())
    tally.slowest = max(tally.slowest, stage.slowest)


def _let_pass(stage: Stage, runner: subprocess.Popen[bytes]) -> None:
    """A random time: a quarter of them from now on, in which the runner may just have been started; the others from
    when cases are at work."""
    if stage.draw.random() >= 0.25:
        while not stage.is_working(runner):
            time.sleep(0.005)
    time.sleep(stage.draw.uniform(0.0, 0.4))


def main(
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs to send.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the plans, the moments and what is done in them.")] = 0,
    folder: Annotated[int, typer.Option(min=0, help="Begin with this folder, to see again what went wrong in it.")] = 0,
    what: Annotated[list[str] | None, typer.Option(help=f"Only this: {', '.join(WHAT)}; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the figures, as JSON.")] = None,
) -> None:
    """Kill, stop and double the runner of fake cases until so many SIGKILLs were sent; nothing may be lost of any run.

    A broken promise keeps its folder, and ends it with exit code 1.
    """
    if unknown := set(what or ()) - set(WHAT):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(WHAT)}")
    actions = [action for action in ACTIONS if not what or action.what in what]
    if not any(action.kills for action in actions):
        raise typer.BadParameter("nothing of that kills: add something that does")
    console, begun, tally = Console(), time.monotonic(), Tally()
    started = utc_time()
    adopt_orphans()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("kills", total=kills)
        while tally.kills < kills:
            number = folder + tally.folders
            stage = Stage(Path(tempfile.mkdtemp(prefix="soak-")), f"{seed}/{number}", random.Random(f"{seed}/{number}"))
            try:
                soak_folder(stage, actions, kills, tally)
            except Broken as broken:
                console.print(_report(broken, stage, seed, number), markup=False, highlight=False, soft_wrap=True)
                raise typer.Exit(1) from None
            finally:
                signal_all(descendants(stage.started), 9)
            shutil.rmtree(stage.place)
            progress.update(bar, completed=min(kills, tally.kills), description=f"kills, folder {number}")
    figures = _figures(tally, seed, started, time.monotonic() - begun)
    if out is not None:
        write_atomically(out, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    console.print_json(json.dumps(figures))


def _report(broken: Broken, stage: Stage, seed: int, number: int) -> str:
    """What went wrong, after what, and how to see it again."""
    done = "\n".join(f"  {step}. {name}" for step, name in enumerate(stage.done, start=1))
    again = f"python -m mixerzoo.benchmarks.soak --seed {seed} --folder {number}"
    return (
        f"broken: {broken}\nafter, in this folder:\n{done}\nthe runners said:\n{stage.said()}\n"
        f"kept: {stage.place}\nagain, if the moment comes back: {again}"
    )


def _figures(tally: Tally, seed: int, started: str, seconds: float) -> dict[str, Any]:
    found, tree = machine(), source()
    return {
        "kills": tally.kills,
        "actions": {action.name: tally.actions[action.name] for action in ACTIONS},
        "folders": tally.folders,
        "starts": tally.starts,
        "cases": tally.cases,
        "slowest_end_seconds": round(tally.slowest, 3),
        "seconds": round(seconds),
        "seed": seed,
        "started": started,
        "machine": f"{found['cpu'] or 'unknown CPU'}, {found['usable_cores']} cores",
        "python": platform.python_version(),
        "source": tree,
    }


if __name__ == "__main__":
    typer.run(main)
