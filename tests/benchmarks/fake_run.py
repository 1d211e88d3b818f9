"""A run whose cases do what their parameters say, started in a process of its own: it can be looked at, and killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

# with a terminal it draws the table; `watch` names a command that stands for `mixerzoo report`
PROGRAM = """
import json, sys, time
from pathlib import Path
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.doing import Doing
from mixerzoo.benchmarks.live import Several
from mixerzoo.benchmarks.progress import StatusFile, reporter_for
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run
from mixerzoo.benchmarks.watch import PageWatch
from rich.console import Console

def run_case(job, channel):
    parameters = job["parameters"]
    if parameters.get("error"):
        raise ValueError(parameters["error"])
    begun = time.time()
    until = parameters.get("until")  # a file: the case ends when it is there
    channel.progress(0.25, Doing("asking [b]8,192[/] tokens", {"accuracy": 0.5, "loss": float("nan")}))
    while until and not Path(until).exists():
        time.sleep(0.02)
    time.sleep(parameters.get("sleep", 0))
    if parameters.get("log"):
        with open(parameters["log"], "a") as log:
            log.write(f"case {begun} {time.time()}\\n")
    return {}

if __name__ == "__main__":
    folder, cases, jobs, watch = sys.argv[1], *map(json.loads, sys.argv[2:])
    plan = Plan(tuple(
        Case(c.pop("label", "lin"), "line", {}, c.pop("measure", "fake"), c, seed, "cpu", c.pop("exclusive", False))
        for seed, c in enumerate(cases)
    ))
    run, console = Run(folder), Console(width=80)
    reporters = [StatusFile(run, ["mixerzoo", "run", "a suite", "--out", folder]), reporter_for(console)]
    if watch:
        PageWatch.pause_seconds = PageWatch.pause_times = 0.0
        reporters.append(PageWatch(run, console, watch))
    limits = Limits(jobs=jobs)
    executor = LocalExecutor(limits, "cpu", run_case, preloaded=[])
    execute(lambda _: plan, run, {"name": "fake"}, limits, Several(*reporters), executor, device="cpu")
"""


def start_run(folder: Path, cases: list, jobs: int = 1, watch: list | None = None, **streams) -> subprocess.Popen:
    """A runner of `cases` (dicts: label, measure, exclusive, error, until, sleep, log) in `folder/run`."""
    program = folder / "fake_run.py"
    program.write_text(PROGRAM)
    arguments = [str(folder / "run"), json.dumps(cases), str(jobs), json.dumps(watch)]
    return subprocess.Popen([sys.executable, program, *arguments], **streams)


def wait_for(true, runner=None, seconds=60.0):
    """The first true value of `true()`."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came"
        assert runner is None or runner.poll() is None, "the runner has ended"
        time.sleep(0.02)
    return found
