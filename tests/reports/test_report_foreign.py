"""What another tool measured is shown with its source, and decides nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.foreign import import_file
from mixerzoo.reports import write_report
from mixerzoo.reports.measures.foreign import MOST
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.verdict import findings

from ..benchmarks.foreign_files import CSV, FLA, LM_EVAL, text

HOSTILE = '</script><script>alert("label")</script> *bold* | `code`\n'


def imported(folder: Path, content: bytes) -> Path:
    (folder / "results").write_bytes(content)
    return import_file(folder / "results", folder / "run").folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    row = {**FLA["results"][0], "op": HOSTILE, "scale": HOSTILE}
    machine = {**FLA["machine_info"], "gpu_name": HOSTILE, "git_label": HOSTILE}
    return imported(tmp_path, text(FLA, results=[row, *FLA["results"]], machine_info=machine))


def shown(run: RunData) -> list[Any]:
    return [section for section in run.sections if list(section.tables(run)) or list(section.figures(run))]


def test_nothing_is_claimed_of_it(tmp_path: Path) -> None:
    run = read_run(imported(tmp_path, text(LM_EVAL)))
    assert findings(run) == []
    (section,) = shown(run)
    assert section.measure == "foreign"
    for table in section.tables(run):
        assert table.note.startswith("Measured by lm-evaluation-harness and imported: part of no comparison")
    for figure in section.figures(run):
        assert figure.caption.startswith("Measured by lm-evaluation-harness and imported")


def test_an_environment_that_says_foreign_silences_every_section(tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "reports" / "published" / "decode-speed"
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("suite.yaml", "results.jsonl", "environment.json"):
        (folder / name).write_bytes((published / name).read_bytes())
    assert findings(read_run(folder))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "foreign": {"tool": "x"}}))
    assert findings(read_run(folder)) == []


def test_its_tables_have_its_numbers(tmp_path: Path) -> None:
    run = read_run(imported(tmp_path, text(LM_EVAL)))
    perplexity, accuracy, matches = shown(run)[0].tables(run)
    assert perplexity.title == "perplexity"
    assert perplexity.columns == ["Layout", "Task", "Settings", "Value", "Count"]
    settings = "filter = none, shots = 0, version = 1.0"
    assert perplexity.rows == [["fla-hub/gla-340M", "lambada_openai", settings, "26.02 [25.08, 26.96]", "5,153"]]
    assert "one standard error to each side. Less is better." in perplexity.note
    assert [row[3:] for row in accuracy.rows] == [["0.382 [0.3752, 0.3888]", "5,153"], ["0.2", "–"]]
    assert [row[2].split(",")[0] for row in matches.rows] == ["filter = strict-match", "filter = flexible-extract"]


def test_its_charts_have_its_numbers(tmp_path: Path) -> None:
    run = read_run(imported(tmp_path, text(FLA)))
    (figure,) = shown(run)[0].figures(run)
    (points,) = figure.spec["datasets"].values()
    found = [(p["row"], p["value"], p["low"], p["high"]) for p in points]
    assert found == [
        ("1. chunk_gla, fwd", 1.268, 1.26, 1.275),
        ("2. chunk_gla, fwdbwd", 4.818, 4.8, 4.9),
        ("3. fused_attnres[gluon], fwd", 0.5, 0.49, 0.52),
    ]
    assert figure.svg.startswith("<svg")


def test_a_long_file_is_drawn_in_part_and_tabulated_in_full(tmp_path: Path) -> None:
    row = FLA["results"][0]
    run = read_run(imported(tmp_path, text(FLA, results=[{**row, "T": 2 * n + 2} for n in range(MOST + 7)])))
    (section,) = shown(run)
    (table,), (figure,) = section.tables(run), section.figures(run)
    assert len(table.rows) == MOST + 7
    assert len(next(iter(figure.spec["datasets"].values()))) == MOST
    assert f"The first {MOST} of {MOST + 7} values" in figure.caption


def test_the_report_of_a_table_without_a_machine(tmp_path: Path) -> None:
    folder = imported(tmp_path, CSV.encode())
    write_report(folder)
    markdown = (folder / "report.md").read_text()
    assert "Measured by triton.testing.Benchmark" in markdown
    assert "not by mixerzoo: shown as its file has it, and compared with nothing." in markdown
    assert "mixerzoo run" not in markdown
    assert "the file has no finite number for Execution Time" in markdown  # among the failures
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["layout"], r["value"], r["unit"], r["interval"], r["seeds"]) for r in rows] == [
        ("naive", "0.01536", "ms", "", ""),
        ("naive", "0.0256", "ms", "", ""),
        ("fused", "0.009216", "ms", "", ""),
    ]


def test_hostile_names_stay_text(hostile: Path) -> None:
    page = write_report(hostile).read_text()
    assert "<script>alert" not in page
    assert "<script>alert" not in (hostile / "report.md").read_text()
    assert "<script>alert" not in (hostile / "figures" / "foreign.svg").read_text()
    assert HOSTILE in set(summary(read_run(hostile))["layout"])
