"""Sections: what reports say of a measure is found by its name; a measure that brings none gets a plain one."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.measures import measures
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports import section as section_module
from mixerzoo.reports import write_report
from mixerzoo.reports.finding import Finding
from mixerzoo.reports.page import parts
from mixerzoo.reports.section import PlugInError, Section, known_sections, sections
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.verdict import findings

from .conftest import HOSTILE, LAYOUTS, planned, write_run


def surprise(layout: str, seed: int, length: int, value: float, **more: Any) -> ResultLine:
    """A case of a measure that reports know nothing of."""
    model = {"layout": LAYOUTS[layout].line, "d_model": 64, "n_layers": 2, "d_ff": 192}
    return ResultLine(
        case=f"{layout[:3]}{seed}{length}",
        layout=layout,
        measure="surprise",
        parameters={"model": model, "length": length, "device": "cpu", "threads": 1},
        seed=seed,
        status="ok",
        seconds=1.0,
        metrics={"joules": value, "detail": {"amperes": 2.0, "label": "x"}, "list": [1.0], **more},
    )


@pytest.fixture
def surprising(tmp_path: Path) -> RunData:
    lines = [surprise(name, seed, 512, 10.0 + seed) for name in ("softmax", HOSTILE) for seed in range(3)]
    lines += [surprise("softmax", 0, 1024, 20.0)]
    return read_run(write_run(tmp_path / "run", lines, planned(lines)))


def test_every_measure_of_ours_has_a_section_in_a_file_of_its_name() -> None:
    assert set(measures()) <= set(known_sections())
    files = Path(section_module.__file__).parent / "measures"
    assert {f.stem for f in files.glob("*.py")} - {"__init__"} == set(known_sections())
    order = [s.order for s in sections([])]
    assert order == sorted(order) and sections([])[0].measure == "training"  # who was taught comes first


def test_a_measure_without_a_section_gets_a_plain_one(surprising: RunData) -> None:
    (part,) = [p for p in parts(surprising) if p.name == "surprise"]
    assert [t.title for t in part.tables] == ["Surprise (512 tokens)", "Surprise (1,024 tokens)"]
    assert part.tables[0].columns == ["Layout", "joules", "detail.amperes"]
    (row,) = [row for row in part.tables[0].rows if row[0] == "softmax"]
    assert row[1].startswith("11 [8.5") and row[2] == "2"  # seeds that all agree have no interval
    numbers = summary(surprising).query("measure == 'surprise' and quantity == 'joules' and length == 512")
    assert list(numbers["value"]) == [11.0, 11.0] and list(numbers["seeds"]) == [3, 3]
    assert numbers["low"].iloc[0] == pytest.approx(11 - 4.302652729749464 / math.sqrt(3))
    assert not findings(surprising)  # nobody said which end is the better one


def test_the_plain_section_stands_on_the_page_and_in_the_files(surprising: RunData) -> None:
    page = write_report(surprising.folder)
    assert 'id="surprise"' in page.read_text() and '<script>alert("label")' not in page.read_text()
    assert "## Surprise" in (page.parent / "report.md").read_text()
    assert (page.parent / "tables" / "surprise.csv").is_file()


def announce(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint("surprise", value, section_module.GROUP)
    monkeypatch.setattr(section_module, "entry_points", lambda group: [entry] if group == section_module.GROUP else [])
    known_sections.cache_clear()


@pytest.fixture(autouse=True)
def forget_what_was_announced() -> Any:
    yield
    known_sections.cache_clear()


class Announced(Section):
    measure, title, order = "surprise", "What nobody expected", 5

    def findings(self, run: RunData) -> Any:
        yield Finding("Fewest joules", "softmax", "11 J", "softmax needs 11 J.")


ANNOUNCED = Announced()


def test_a_package_may_announce_a_section(monkeypatch: pytest.MonkeyPatch, surprising: RunData) -> None:
    announce(monkeypatch, f"{__name__}:ANNOUNCED")
    monkeypatch.setattr(EntryPoint, "load", lambda self: ANNOUNCED)
    run = read_run(surprising.folder)
    assert run.sections[0] is ANNOUNCED and [f.topic for f in findings(run)] == ["Fewest joules"]


def test_a_section_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, surprising: RunData) -> None:
    announce(monkeypatch, "no_such_module_anywhere:SECTION")
    with pytest.raises(PlugInError, match=r"'surprise' \(no_such_module_anywhere:SECTION\) could not be loaded"):
        read_run(surprising.folder)


def test_findings_hold_a_score_for_every_layout_and_lead_to_what_is_on_the_page(made_up_run: Path) -> None:
    run = read_run(made_up_run)
    text = write_report(made_up_run).read_text()
    found = findings(run)
    recall = next(f for f in found if f.topic.startswith("Recall:"))
    scores = {s.layout: s for s in recall.scores}
    assert set(scores) == set(LAYOUTS) and scores["swa"].text == "not taught" and scores["swa"].value is None
    assert scores["swa + fwpkm"].best and scores["swa + fwpkm"].text in recall.sentence
    speed = next(f for f in found if f.topic.startswith("Fastest training step"))
    assert speed.better == "more" and {s.layout for s in speed.scores if s.best} == {speed.winner}
    for finding in found:
        assert f'id="{finding.evidence}"' in text, finding.topic


def test_layouts_without_a_number_say_why(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(lambda line: line.measure == "speed" and line.parameters.get("lengths") == [8192]))
    found = [f for f in findings(run) if f.topic.startswith("Fastest training step at 8,192")]
    (score,) = [s for f in found for s in f.scores if s.layout == "softmax"]
    assert (score.text, score.value, score.best) == ("out of memory", None, False)
