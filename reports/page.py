"""A run folder's report: one self-contained HTML page, Markdown, CSV and the charts as files."""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..benchmarks.runs import results_digest, write_atomically
from . import formats
from .about_tables import about_tables
from .answers import answers
from .charts import Figure, drawing_code, json_in_script, looks
from .fairness import fairness
from .lines import size
from .scoreboard import families, scoreboard
from .summary import summary
from .table import Table
from .tables import RunData, read_run
from .taught import statements
from .verdict import findings, training_statement

_IN_URI = " ,;:()[]{}/+*=|~.-_"  # characters of a CSV that may stand in the address of a link
MOST_ROWS = 200  # of a table on the page; all are in a file beside it
MOST_SVG = 160_000  # bytes of a drawing in the page
_ERROR_LENGTH = 300  # characters of an error in Markdown; the page has all of it
_SAY_NONE = ("failures", "missing")  # tables that say something by being empty


@dataclass(frozen=True)
class Part:
    """A section of the page: its charts, its tables, and what to say if there is nothing."""

    name: str
    title: str
    figures: list[Figure]
    tables: list[Table]
    nothing: str


def write_report(folder: str | Path, named: str | Path | None = None) -> Path:
    """Write `report.html`, `report.md`, `summary.csv`, `figures/*` and `tables/*.csv` into a run folder.

    named: what the commands on the page call the folder, default as it is given. What was not measured has no table.
    Returns the page's absolute path. Raises `RunError` if the folder holds no run that can be read.
    """
    run = read_run(folder)
    shown = parts(run)
    drawn = [figure for part in shown for figure in part.figures]
    _clear(run.folder / "figures", "*.svg", "*.png")
    _clear(run.folder / "tables", "*.csv")
    for figure in drawn:
        figure.save(run.folder / "figures")
    summary(run).to_csv(run.folder / "summary.csv", index=False)
    for whole in (table for part in shown for table in part.tables if len(table.rows) > MOST_ROWS):
        (run.folder / _beside(whole)).write_text(whole.csv(), encoding="utf-8")
    shown = [replace(part, tables=[table.first(MOST_ROWS, _beside(table)) for table in part.tables]) for part in shown]
    for name, table in run.tables().items():
        if len(table) or name in _SAY_NONE:
            table.to_csv(run.folder / "tables" / f"{name}.csv", index=False)
    content = _content(run, shown)
    content["commands"] = _commands(replace(run, folder=Path(named or folder)), content["commit"])
    environment = _environment()
    page = run.folder / "report.html"
    bundle = drawing_code() if drawn else ""
    html = environment.get_template("report.html.j2").render(**content, bundle=Markup(_in_script(bundle)))
    write_atomically(page, html)  # a browser may load it at any moment
    markdown = environment.get_template("report.md.j2").render(**content)
    write_atomically(run.folder / "report.md", markdown)
    return page.resolve()


def _beside(table: Table) -> str:
    """Where the whole of a long table of the page lies, from the run's folder."""
    return f"tables/page-{table.name}.csv"


def parts(run: RunData) -> list[Part]:
    """The sections that have something to show, or that the suite asks for; at the end, what stands behind them."""
    asked = {str(entry.get("measure")) for entry in run.suite.get("measures") or []}
    found = []
    for section in run.sections:
        figures, tables = list(section.figures(run)), list(section.tables(run))
        if figures or tables or section.measure in asked:
            nothing = "" if figures or tables else "The suite asks for this, but no case of it has a result."
            found.append(Part(section.measure, section.title, figures, tables, nothing))
    about = Part("models", "Models and backends", [], list(about_tables(run)), "")
    return [*found, about] if about.tables else found


def _content(run: RunData, shown: list[Part]) -> dict[str, Any]:
    """What both templates show."""
    source = run.environment.get("source") or {}
    found = findings(run)
    fair, board, drawings = fairness(run), scoreboard(run, found), looks(run.layouts) if run.lines else []
    elements = {"failures", *(f"figure-{f.name}" for part in shown for f in part.figures)}
    elements |= {f"table-{t.name}" for part in shown for t in part.tables}
    return {
        "run": run,
        "name": run.suite.get("name") or run.folder.resolve().name,
        "description": run.suite.get("description") or "",
        "digest": results_digest(run.folder),
        "looks": drawings,
        "look_of": {look.layout: look for look in drawings},
        "families": families(run),
        "family_names": sorted({name for own in families(run).values() for name in own}),
        "lengths": _lengths(run),
        "answers": answers(found, fair, elements),
        "board": board,
        "has_parameters": any(row.parameters for row in board.rows),
        "fair": fair,
        "untaught": statements(run),
        "device": _device(run.environment),
        "cpu": _cpu(run),
        "brackets": _brackets(run),
        "trainings": training_statement(run),
        "texts": _texts(run),
        "sections": shown,
        "failures": run["failures"].head(MOST_ROWS).to_dict("records"),
        "failed": len(run["failures"]),
        "missing": run["missing"].head(MOST_ROWS).to_dict("records"),
        "lacking": len(run["missing"]),
        "most_rows": MOST_ROWS,
        "complete": _complete(run),
        "finished": len(run.lines),
        "commit": source.get("commit"),
        "dirty": bool(source.get("dirty")),
        "silence": _silence(run),
        "machine": [*_precisions(run), *_machine(run.environment)],
        "packages": [(k, v or "not installed") for k, v in (run.environment.get("packages") or {}).items()],
        "suite_yaml": yaml.safe_dump(run.suite, sort_keys=False, allow_unicode=True, width=100),
        "version": version("mixerzoo"),
        "error_length": _ERROR_LENGTH,
    }


def _lengths(run: RunData) -> list[int]:
    """Every length that something was measured at."""
    asked = [size(line, "length") or line.parameters.get("lengths") for line in run.lines]
    return sorted({int(n) for own in asked if own for n in (own if isinstance(own, list) else [own])})


def _brackets(run: RunData) -> str:
    """What the numbers in brackets of the verdict are."""
    recall = ["95 % intervals of recall and of its differences"] if len(run["answers"]) else []
    speed = ["the first and third quartile of speed, 95 % intervals of its ratios"] if len(run["speed"]) else []
    held = any(len(frame) for name, frame in run.frames.items() if name.endswith("_ratios"))
    ops = ["the widest range that quartiles allow for ratios of what ran in turn"] if held else []
    said = "; ".join([*recall, *speed, *ops])
    return f"In brackets: {said}." if said else ""


def _complete(run: RunData) -> str:
    """What is known of the cases that have no result yet."""
    if run.plan is None:
        return "This run kept no plan of its cases, so nothing is known of any that are missing."
    if not run.plan["final"]:
        return "Not all cases are known yet: what follows from tuning and training is planned when that is done."
    return "" if len(run["missing"]) else "Every planned case has been run."


def _texts(run: RunData) -> list[str]:
    """Where the text of recall and perplexity came from, a line for each measure and corpus."""
    found: dict[str, list[str]] = {}
    for line in run.lines:
        text = (line.metrics or {}).get("text")
        if isinstance(text, dict):
            train, held_out = (formats.bytes_(text.get(f"{split}_bytes")) for split in ("train", "eval"))
            digest = str(text.get("sha256"))[:12]
            described = f"{text.get('source')} ({train} to train on, {held_out} held out; SHA-256 {digest})"
            measures = found.setdefault(described, [])
            if line.measure not in measures:
                measures.append(line.measure)
    return [f"Text for {formats.listing(measures)}: {described}." for described, measures in found.items()]


def _silence(run: RunData) -> str:
    """What is said instead of a verdict where there is none."""
    if run.foreign_tool:
        return f"Measured by {run.foreign_tool}, not by mixerzoo: shown as its file has it, and compared with nothing."
    return "No case has a result yet, so there is nothing to compare."


def _commands(run: RunData, commit: str | None) -> list[str]:
    """What to type to repeat the run, in a checkout of mixerzoo."""
    folder = shlex.quote(str(run.folder))
    if run.foreign_tool:
        return ["# with the tool that measured it; only this page:", f".venv/bin/mixerzoo report {folder}"]
    again = shlex.quote(f"{run.folder}-again")
    device = run.environment.get("device")
    option = f" --device {shlex.quote(str(device))}" if device else ""
    return [
        *([f"git checkout {shlex.quote(commit)}"] if commit else []),
        "make install",
        f".venv/bin/mixerzoo run {shlex.quote(str(run.folder / 'suite.yaml'))} --out {again}{option}",
        f".venv/bin/mixerzoo report {again}",
        f"# only this report, from the results that are there: .venv/bin/mixerzoo report {folder}",
    ]


def _machine(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """The environment but for versions and commit, as pairs of a name and a text."""
    machine = environment.get("machine") or {}
    tabulated = ("doctor",) if "rows" in (environment.get("doctor") or {}) else ()
    elsewhere = ("machine", "machines", "packages", "source", "cards", "layout_mixers", "plugins_failed", *tabulated)
    others = {k: v for k, v in environment.items() if k not in elsewhere}
    return [(key.replace("_", " "), text) for key, text in _flatten({**machine, **others})]


def _cpu(run: RunData) -> str:
    """The processor of the machine; of several machines, how many and of how many kinds."""
    machines, kinds = len(run.machines), len(set(run.kinds.values()))
    if machines > 1:
        return f"{machines} machines of {f'{kinds} kinds' if kinds > 1 else 'one kind'}"
    return str((run.environment.get("machine") or {}).get("cpu") or "machine not known")


def _device(environment: dict[str, Any]) -> str:
    """What it was measured on, with the name of the GPU."""
    device, gpu = environment.get("device", "not known"), environment.get("gpu") or {}
    return f"{device} ({gpu['name']})" if gpu.get("name") else str(device)


def _precisions(run: RunData) -> list[tuple[str, str]]:
    """In which precision the cases computed, and whether with TF32, as pairs of a name and a text."""
    found: dict[str, list[str]] = {}
    for line in run.lines:
        settings = line.parameters.get("training") or line.parameters
        if precision := settings.get("precision"):
            tf32 = {True: " with TF32", False: "", None: ""}[line.parameters.get("tf32")]
            measures = found.setdefault(f"{precision}{tf32}", [])
            if line.measure not in measures:
                measures.append(line.measure)
    said = "; ".join(f"{precision} ({', '.join(measures)})" for precision, measures in sorted(found.items()))
    return [("precision", said)] if said else []


def _flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a text."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in _flatten(v, f"{path}.{k}" if path else str(k))]
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return [pair for i, v in enumerate(value) for pair in _flatten(v, f"{path}[{i}]")]
    if value is None or value == []:
        return [(path, "none" if value == [] else "not known")]
    if path.endswith("_bytes"):
        return [(path, formats.bytes_(value))]
    return [(path, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]


def _environment() -> Environment:
    """Templates escape everything in HTML; in Markdown every value from a run goes through the filter `md`."""
    environment = Environment(
        loader=PackageLoader("mixerzoo.reports", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": formats.markdown,
        "fence": _fence,
        "seconds": formats.seconds,
        "bytes": formats.bytes_,
        "csv_uri": _csv_uri,
        "svg_uri": _svg_uri,
        "spec": lambda figure: Markup(figure.spec_json),
        "whole": formats.whole,
        "breakable": lambda text: escape(text).replace("_", Markup("_<wbr>")),
        "json": lambda value: Markup(json_in_script(value)),
    }
    return environment


def _csv_uri(table: Any) -> str:
    """The whole table in the address itself, or where it lies beside the page."""
    beside = getattr(table, "beside", "")
    return quote(beside) if beside else f"data:text/csv;charset=utf-8,{quote(table.csv(), safe=_IN_URI)}"


def _svg_uri(figure: Figure) -> str:
    """The drawing that stands until the page draws its own; a very large one is the file beside the page."""
    if len(figure.svg) > MOST_SVG:
        return quote(f"figures/{figure.name}.svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(figure.svg.encode()).decode()}"


def _fence(text: object) -> str:
    """A Markdown code block that its content cannot close."""
    marks = "`" * 3
    while marks in str(text):
        marks += "`"
    return f"{marks}\n{str(text).rstrip()}\n{marks}"


def _in_script(code: str) -> str:
    """JavaScript that an HTML parser reads to its end; `<\\/` and `<\\!` mean the same in strings and patterns."""
    return code.replace("</script", "<\\/script").replace("</SCRIPT", "<\\/SCRIPT").replace("<!--", "<\\!--")


def _clear(folder: Path, *patterns: str) -> None:
    """Remove what an earlier report left, so that no old chart stands beside new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()
