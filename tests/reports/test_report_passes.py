"""A context read several times: a chart and a table of their own, and no number pooled over passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mixerzoo.benchmarks.runs import Run
from mixerzoo.reports.figures import figures
from mixerzoo.reports.summary import page_tables, summary
from mixerzoo.reports.tables import read_run

MakeRun = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """Two layouts; at the second pass the memory finds what it had missed, in part, and the window nothing new."""
    folder = make_run(lambda line: line.measure == "recall" and line.layout in ("swa", "swa + fwpkm"))
    lines = Run(folder).results()
    (folder / "results.jsonl").unlink()
    with Run(folder).locked() as results:
        for line in lines:
            assert line.metrics is not None
            rows = [{**row, "correct": 80 if line.layout == "swa" else 120} for row in line.metrics["rows"]]
            rows = [{**row, "total": 160} for row in rows]
            again = [{**row, "passes": 2, "correct": 80 if line.layout == "swa" else 130} for row in rows]
            results.append(line.model_copy(update={"metrics": {**line.metrics, "rows": rows + again}}))
    return folder


def test_several_passes_have_a_chart_and_a_table(run: Path) -> None:
    data = read_run(run)
    names = [figure.name for figure in figures(data)]
    assert "recall-passes" in names
    tables = {table.name: table for table in page_tables(data)}
    table = tables["recall-by-passes"]
    assert table.columns == ["Layout, passes", "1", "2"]
    shown = {name: [cell.split()[0] for cell in cells] for name, *cells in table.rows}
    assert shown == {"swa": ["50.0", "50.0"], "swa + fwpkm": ["75.0", "81.2"]}


def test_other_numbers_are_of_the_first_reading(run: Path) -> None:
    data = read_run(run)
    accuracy = summary(data).query("quantity == 'accuracy' and layout == 'swa + fwpkm'")
    assert set(accuracy["value"]) == {0.75} and set(accuracy["count"]) == {4 * 2 * 160}
    recent = next(table for table in page_tables(data) if table.name == "recall-recent")
    cells = {row[0]: row[1] for row in recent.rows}
    assert cells["swa + fwpkm"].startswith("75")


def test_a_single_pass_has_neither(make_run: MakeRun) -> None:
    data = read_run(make_run(lambda line: line.measure == "recall"))
    assert not [f for f in figures(data) if f.name.startswith("recall-passes")]
    assert not [t for t in page_tables(data) if t.name.startswith("recall-by-passes")]
