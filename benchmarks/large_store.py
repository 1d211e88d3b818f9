"""A store of many results, made of those of published runs, and what it takes to open, resume, look at and report it.

python -m mixerzoo.benchmarks.large_store build/large --results 100000

Each step is a process of its own: its seconds, and the most memory that it held. Lines and sizes are those of real
cases; only seeds and ids are others. A store that is there already is measured as it is.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .case import Case, Plan
from .result_lines import ResultLine, encode_line
from .runs import Run
from .schema import SCHEMA_VERSION

PUBLISHED = Path(__file__).resolve().parents[1] / "reports" / "published"
SOURCES = ("quick", "recall-capacity", "zoo-speed")
MISSING = 2  # cases that resuming finds without a result
_OF_THE_RUNNER = ("model", "layout_line", "device", "tf32", "threads")
_EXCLUSIVE = frozenset({"speed", "memory", "mixer_speed"})


def templates() -> list[ResultLine]:
    """The results of the published runs, trainings first: other cases name theirs."""
    lines = [line for name in SOURCES for line in Run(PUBLISHED / name).lines()]
    return sorted(lines, key=lambda line: "trained" in line.parameters)


def copies(count: int) -> Iterator[tuple[Case, ResultLine]]:
    """`count` cases and what each is a copy of, all with ids of their own."""
    originals = templates()
    for number in itertools.count():
        ids: dict[str, str] = {}
        for line in originals:
            if count == 0:
                return
            case = _case(line, line.seed + 1000 * number, ids)
            ids[line.case] = case.id
            count -= 1
            yield case, line


def make(folder: Path, count: int) -> Run:
    """A run with `count` results, and `MISSING` cases more in its plan."""
    run = Run(folder)
    folder.mkdir(parents=True)
    environment = Run(PUBLISHED / SOURCES[0]).environment()
    run.write_environment(environment)
    cases = []
    with run.results_path.open("wb") as file:
        for case, line in copies(count + MISSING):
            cases.append(case)
            if len(cases) <= count:
                parameters = {**line.parameters, **case.parameters}
                update = {
                    "case": case.id,
                    "seed": case.seed,
                    "parameters": parameters,
                    "schema_version": SCHEMA_VERSION,
                }
                file.write(encode_line(line.model_copy(update=update).model_dump()))
    run.write_plan(Plan(tuple(cases)).to_json())
    run.write_suite({"name": "large", "layouts": {case.label: case.layout_line for case in cases}})
    return run


def _case(line: ResultLine, seed: int, ids: Mapping[str, str]) -> Case:
    own = {name: value for name, value in line.parameters.items() if name not in _OF_THE_RUNNER}
    if "trained" in own:
        own["trained"] = ids.get(own["trained"], own["trained"])
    model, layout, device = (line.parameters[name] for name in ("model", "layout_line", "device"))
    return Case(line.layout, layout, model, line.measure, own, seed, device, line.measure in _EXCLUSIVE)


# --- Steps ---


def opening(run: Run) -> str:
    """Know every case and how it ended."""
    index = run.index()
    return f"{len(index)} results, {sum(head.status == 'ok' for head in index.values())} ok"


def reading(run: Run) -> str:
    """Read all that was measured, one result after the other."""
    return f"{sum(1 for _ in run.lines())} results"


def resuming(run: Run) -> str:
    """Go on with the run: plan, find what is missing, and run it (each case is refused at once)."""
    from .executors.local import LocalExecutor
    from .limits import Limits
    from .live import Reporter
    from .runner import execute

    cases = tuple(case for case, _ in copies(len((run.plan() or {})["cases"])))
    limits = Limits(jobs=1)
    executor = LocalExecutor(limits, "cpu", run_case=_refused, preloaded=[])
    results = execute(lambda _: Plan(cases), run, run.suite(), limits, Reporter(), executor, device="cpu")
    return f"{len(results)} cases"


def status(run: Run) -> str:
    """What `mixerzoo status` does."""
    from .overview import Onlooker

    return f"{Onlooker(run)().totals.total()} cases"


def report(run: Run) -> str:
    """What `mixerzoo report` does."""
    from .cli import main

    main(["report", str(run.folder)])
    return ""


def _refused(job: dict[str, Any], channel: Any) -> dict[str, Any]:
    raise ValueError("only to see that the run goes on")


STEPS: dict[str, Callable[[Run], str]] = {step.__name__: step for step in (opening, reading, resuming, status, report)}


def measure(folder: Path, step: str) -> dict[str, Any]:
    """What one step takes in a process of its own: seconds (of the processor, too, which matters on a machine that is
    shared), and the bytes of memory that it held at most."""
    program = "import sys; from mixerzoo.benchmarks.large_store import STEPS, Run; from pathlib import Path\n"
    program += "print(STEPS[sys.argv[2]](Run(sys.argv[1])))"
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), step], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    said = process.stdout.read().strip()
    _, code, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(code)
    return {
        "step": step,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
        "exit_code": process.returncode,
        "said": said.splitlines()[-1] if said else "",
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Where the store is, or is to be made.")],
    results: Annotated[int, typer.Option(min=1)] = 100_000,
    only: Annotated[list[str] | None, typer.Option(help="Of opening, reading, resuming, status, report.")] = None,
) -> None:
    """Make a large store and measure it."""
    if not folder.exists():
        make_it = "import sys; from mixerzoo.benchmarks.large_store import make, Path\n"
        make_it += "make(Path(sys.argv[1]), int(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", make_it, str(folder), str(results)], check=True)  # its memory is not ours
    print(f"{Run(folder).results_path.stat().st_size / 1e6:.0f} MB of results")
    for step in only or STEPS:
        print(json.dumps(measure(folder, step)), flush=True)


if __name__ == "__main__":
    typer.run(main)
