"""The command doctor: which backends are right and fastest on this machine; and the same before a run on a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import cli_mixers

if TYPE_CHECKING:
    from ..mixers.doctor import Diagnosis, Examination, Findings, Row
    from ..mixers.ops.verdicts import Verdict
    from .suite import Suite

_LENGTHS = ("one", "short", "middle", "long")
_STYLES = {"right": "green", "refused": "yellow"}
_WIDE = 10_000  # columns of a console that breaks no line


def doctor_command(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N for one of several GPUs.")] = "auto",
    mixers: Annotated[str, typer.Option(help="Only the ops of mixers that match this pattern.")] = "*",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16 or float16, may be repeated; default all, on a CPU float32."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Prove what is known already.")] = False,
    every_width: Annotated[bool, typer.Option("--all", help="A row for every class of head sizes.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for an issue.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is known as JSON.")] = False,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds of one step of one case.")] = 120.0,
) -> None:
    """Prove the fast kernels on this machine, and time them: what is right and fastest is what auto takes."""
    import torch

    from ..mixers import list_mixers
    from ..mixers.doctor import DTYPES, Examination, ops_of, summarise
    from .device import choose_device

    cli_mixers.load_plugins()
    names = list_mixers(mixers)
    if not names:
        raise ValueError(f"no mixer matches {mixers!r}; `mixerzoo list` shows all")
    place = torch.device(choose_device(device))
    usual = ("float32",) if place.type == "cpu" else DTYPES
    examination = Examination(ops_of(names), place, dtypes=dtype or usual, again=again, time_limit=time_limit)
    diagnosis = examine(examination, Console(stderr=True))
    findings = summarise(diagnosis, every_width=every_width)
    if as_json:
        print(json.dumps(_everything(diagnosis, findings), indent=1, allow_nan=False))
    else:
        _print(findings, markdown)
    if diagnosis.failed:
        raise typer.Exit(1)


def before_run(suite: Suite, device: str, wanted: bool, console: Console) -> dict[str, Any]:
    """What `environment.json` says of the doctor, who examines first what the suite's mixers run on a CUDA device.

    wanted: False skips it. The precisions are those of the suite's measures, and float32, in which parameters and
    memories stay.
    """
    from .device import kind_of, usable_here

    if kind_of(device) != "cuda":
        return {"skipped": "the run is not on a GPU: kernels for one have nothing to prove"}
    if not wanted:
        return {"skipped": "--no-doctor"}
    if not usable_here(device):
        return {"skipped": "the machine that the run was started from has no CUDA device"}
    import torch

    from ..mixers.doctor import Examination, ops_of, summarise
    from ..models import parse_layout
    from .suite import mixer_names

    labels = {label for entry in suite.entries for label in entry.labels}
    mixers = {name for label in labels for name in mixer_names(parse_layout(suite.layouts[label]))}
    precisions = {entry.measure.computes_in for entry in suite.on(device).entries}
    examination = Examination(ops_of(sorted(mixers)), torch.device(device), dtypes=sorted({"float32", *precisions}))
    findings = summarise(examine(examination, console))
    return dict(json.loads(findings.model_dump_json()))


def examine(examination: Examination, console: Console) -> Diagnosis:
    """Examine, with a bar on a terminal, else with a line when each backend's turn comes, and for what is not right."""
    if examination.open:
        where = examination.device
        console.print(f"{len(examination.open)} cases to prove on {where}; what is done is kept", highlight=False)
    with _Told(console) as told:
        return examination.run(told.listen)


class _Told(AbstractContextManager["_Told"]):
    """Who is told how an examination goes."""

    def __init__(self, console: Console) -> None:
        self.console, self.task, self.lines = console, None, set[str]()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True) if console.is_terminal else nullcontext()

    def __enter__(self) -> _Told:
        self.bar = self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def listen(self, work: str, done: int, total: int, verdict: Verdict) -> None:
        about = f"{work} {verdict.op} {verdict.backend}"
        if self.bar is not None:
            tasks = {task.description.split()[0]: task.id for task in self.bar.tasks}
            task = tasks[work] if work in tasks else self.bar.add_task(about)
            self.bar.update(task, description=escape(about), total=total, completed=done)
        elif about not in self.lines:
            self.lines.add(about)
            self.console.print(f"{about}, {done} of {total} cases done", highlight=False)
        if not {verdict.outcome, verdict.backward} <= {"right", "refused", None}:
            self.console.print(f"[red]{escape(_failure(verdict))}[/]", highlight=False, soft_wrap=True)


def _failure(v: Verdict) -> str:
    what = v.outcome if v.outcome != "right" else f"backward {v.backward}"
    case = " ".join(filter(None, (v.op, v.backend, v.variant, v.dtype, str(v.width))))
    return f"{case}: {what}: {v.detail}"


def _print(findings: Findings, markdown: bool) -> None:
    console = Console(width=_WIDE) if markdown else Console()
    versions = [f"{name} {value}" for name, value in findings.machine.items() if value]
    if markdown:
        console.print(f"`mixerzoo doctor` on {findings.device}: {', '.join(versions)}\n", markup=False, highlight=False)
    console.print(findings_table(findings.rows, markdown))
    for sentence in sentences(findings):
        console.print(f"\n{sentence}" if markdown else sentence, markup=False, highlight=False, soft_wrap=True)


def findings_table(rows: Sequence[Row], markdown: bool = False) -> Table:
    """A row for each backend, variant and dtype, with classes of head sizes joined."""
    columns = ("op", "backend", "variant", "dtype", "head sizes", "result", "error / limit", "backward")
    table = Table(*columns, *_LENGTHS, "reason", box=box.MARKDOWN if markdown else box.HEAVY_HEAD)
    for row in rows:
        cells = [row.op, row.backend, row.variant, row.dtype, ", ".join(map(str, row.widths))]
        cells += [_styled(row.outcome), _errors(row), _styled(row.backward)]
        cells += [_speedup(row, length) for length in _LENGTHS]
        reason = "; ".join(row.detail.split("\n")[:2])
        table.add_row(*(cell.replace("|", "\\|") if markdown else cell for cell in (*cells, escape(reason))))
    table.caption = None if markdown else "times as fast as the portable code: forward, train; the least and the most"
    return table


def _styled(outcome: str | None) -> str:
    return "" if outcome is None else f"[{_STYLES.get(outcome, 'red')}]{outcome}[/]"


def _errors(row: Row) -> str:
    """The error that comes nearest to its limit, or exceeds it the most."""
    if not row.errors:
        return ""
    worst = max(row.errors.values(), key=lambda e: e.error / e.limit)
    return f"{worst.error:.1e} / {worst.limit:.1e}" if math.isfinite(worst.error) else "not finite"


def _speedup(row: Row, length: str) -> str:
    ratios = row.speedups.get(length, {})
    return ", ".join(_span(*ratios[kind]) for kind in ("forward", "train") if kind in ratios)


def _span(least: float, most: float) -> str:
    low, high = f"{least:.2g}", f"{most:.2g}"
    return f"{low}x" if low == high else f"{low}-{high}x"


def sentences(findings: Findings) -> Iterable[str]:
    """What cannot run here, and what is fastest where there was a choice."""
    for op, backend, reason in findings.unavailable:
        yield f"{op}: {backend} cannot run: {reason}"
    for op, counts in findings.fastest.items():
        total = sum(counts.values())
        said = ", ".join(f"{backend} in {count}" for backend, count in counts.items())
        yield f"{op}: of {total} kinds of calls that were timed, fastest is {said}"
    if not findings.rows:
        yield "no backend that must be proven can run here: auto takes the portable code"


def _everything(diagnosis: Diagnosis, findings: Findings) -> dict[str, Any]:
    verdicts = [json.loads(v.model_dump_json()) for v in diagnosis.verdicts]
    return {**json.loads(findings.model_dump_json()), "verdicts": verdicts}
