"""The pages of a site, as texts by their paths in it; a function of its runs alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import formats
from ..charts import drawing_code
from ..micro import micro_figures, micro_tables, read_history
from .boards import Board, boards, sort_value
from .feed import atom
from .history import history_table, pasts
from .manifest import Manifest
from .run import SiteRun


@dataclass(frozen=True, eq=False)
class SuiteRuns:
    """All runs of one suite, newest first; page: the name of its pages."""

    name: str
    page: str
    runs: list[SiteRun]

    @property
    def own(self) -> list[SiteRun]:
        return [run for run in self.runs if run.foreign is None]

    @property
    def foreign(self) -> list[SiteRun]:
        return [run for run in self.runs if run.foreign is not None]

    @property
    def boards(self) -> list[Board]:
        return boards(self.runs)


def pages(runs: list[SiteRun], manifest: Manifest, micro: Path | None) -> dict[str, str]:
    """Every page of the site but the runs' own reports. micro: the history of the micro benchmarks, if it has one."""
    ordered = sorted(runs, key=lambda run: run.order, reverse=True)
    suites = _suites(ordered)
    environment = _environment()

    def page(template: str, root: str, **content: Any) -> str:
        shared = {"root": root, "suites": suites, "runs": ordered, "micro": micro is not None}
        shared["docs"] = manifest.docs and (manifest.docs if urlsplit(manifest.docs).scheme else root + manifest.docs)
        return environment.get_template(f"site/{template}.html.j2").render(**shared, **content)

    made = {f"suites/{suite.page}.html": page("suite", "../", suite=suite) for suite in suites}
    for suite in suites:
        content = {"suite": suite, "pasts": pasts(suite.own)}
        made[f"history/{suite.page}.html"] = page("history", "../", **content)
        made[f"history/{suite.page}.csv"] = history_table(suite.own).to_csv(index=False, lineterminator="\n")
    if micro is not None:
        history = read_history(micro)
        drawn = {"figures": micro_figures(history), "tables": micro_tables(history)}
        made["micro.jsonl"] = micro.read_text(encoding="utf-8")
        made["micro.html"] = page("micro", "", **drawn)
    made["assets/charts.js"] = drawing_code()
    made["feed.atom"] = atom(ordered, manifest.feed, manifest.home)
    made["index.html"] = page("index", "")
    return made


def _suites(runs: list[SiteRun]) -> list[SuiteRuns]:
    """By name; `runs` are sorted."""
    found: dict[str, list[SiteRun]] = {}
    for run in runs:
        found.setdefault(run.suite, []).append(run)
    return [SuiteRuns(name, found[name][0].page, found[name]) for name in sorted(found)]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixerzoo.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "sort_value": sort_value,
        "listing": formats.listing,
        "bytes": formats.bytes_,
        "spec": lambda figure: Markup(figure.spec_json),
    }
    return environment
