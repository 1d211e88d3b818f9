"""Cases of several machines: what is timed is told apart by kind, everywhere, and what was lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.reports.compare import compare
from mixerzoo.reports.doubts import doubts
from mixerzoo.reports.export import export
from mixerzoo.reports.finding import Finding
from mixerzoo.reports.page import write_report
from mixerzoo.reports.scoreboard import scoreboard
from mixerzoo.reports.site.run import read_site_run
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.verdict import findings

from .conftest import ENVIRONMENT, HOSTILE, made_up_lines, write_run

FAST, SLOW = "Example <b>9000</b>, 2 cores", "Other | CPU, 64 cores"
NAMES = {"node-a": FAST, "node-b": FAST, "<i>node-c</i>": SLOW}
ON_SLOW = ("linear", "ttt_linear")
LOST = {"machine": "<i>node-c</i>", "ended": "2026-01-02T04:00:00+00:00", "seconds": 12.0, "why": "the node | died"}
SPEED = {"measures": [{"measure": "speed"}, {"measure": "memory"}]}


def place(line: ResultLine, name: str) -> ResultLine:
    return line.model_copy(update={"machine": {"name": name, "kind": NAMES[name]}, "peak_bytes": 1_234_000_000})


def timed() -> list[ResultLine]:
    """Training steps and peaks at three lengths; two layouts on the slow kind, the hostile one on either."""
    found = []
    for line in made_up_lines():
        length = (line.parameters.get("lengths") or [0])[0]
        mode = {"speed": "train", "memory": "forward"}.get(line.measure)
        if line.parameters.get("modes") == [mode] and line.status == "ok" and length in (256, 512, 1024):
            slow = line.layout in ON_SLOW or (line.layout == HOSTILE and length == 1024)
            found.append(place(line, "<i>node-c</i>" if slow else "node-a" if length == 256 else "node-b"))
    return found


def known(**changes: Any) -> dict[str, Any]:
    software = {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "source": {"commit": "0" * 40, "dirty": False}}
    return {"machines": {name: {"kind": kind, **software, **changes.get(name, {})} for name, kind in NAMES.items()}}


def make(folder: Path, lines: list[ResultLine], **environment: Any) -> Path:
    write_run(folder, lines, **SPEED)
    Run(folder).write_environment({**ENVIRONMENT, **known(), **environment})
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("machines") / "mixed", timed())


@pytest.fixture(scope="module")
def run(mixed: Path) -> RunData:
    return read_run(mixed)


def asked(run: RunData, what: str) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings(run) if what in finding.topic}


def numbers(line: ResultLine) -> list[float]:
    metrics = line.metrics or {}
    return [metrics["tokens_per_second"]["median"]] if line.measure == "speed" else [metrics["peak_bytes"]]


def test_a_question_has_an_answer_on_each_kind_and_names_who_was_timed_elsewhere(run: RunData) -> None:
    found = asked(run, "Fastest training step")
    lengths = {FAST: "512", SLOW: "1,024"}  # the greatest at which the most layouts of the kind have a number
    assert set(found) == {f"Fastest training step at {n} tokens (on {kind})" for kind, n in lengths.items()}
    fast, slow = (next(f for topic, f in found.items() if kind in topic) for kind in (FAST, SLOW))
    assert "Timed on another kind of machine, so not compared: linear and ttt_linear." in fast.sentence
    assert {s.layout for s in fast.scores if s.text == "timed on another kind of machine"} == set(ON_SLOW)
    assert {s.layout for s in slow.scores if s.value is not None} == {*ON_SLOW, HOSTILE}
    assert "swa" in slow.sentence and "not compared" in slow.sentence


def test_every_number_that_is_pooled_comes_from_one_kind_which_is_said(run: RunData) -> None:
    table = summary(run)
    assert set(table[table["measure"].isin(["speed", "memory"])]["machine"]) == {FAST, SLOW}
    rows = table[(table["quantity"] == "tokens_per_second") & (table["mode"] == "train")]
    assert set(rows[rows["layout"] == "linear"]["machine"]) == {SLOW}
    assert set(rows[rows["layout"] == "swa"]["machine"]) == {FAST}
    of_hostile = rows[rows["layout"] == HOSTILE].set_index("length")["machine"].to_dict()
    assert of_hostile == {256: FAST, 512: FAST, 1024: SLOW}
    sources = {(line.layout, line.parameters["lengths"][0]): line for line in timed() if line.measure == "speed"}
    assert all(line.machine for line in sources.values())
    assert all(run.tables()["speed"]["machine"] == run.tables()["speed"]["case"].map(run.kinds))


def test_no_table_chart_or_export_puts_two_kinds_together(run: RunData) -> None:
    speed = next(section for section in run.sections if section.measure == "speed")
    for table in speed.tables(run):
        assert table.columns[1] == "Machine" and len({row[1] for row in table.rows}) == 1, table.title
    for figure in speed.figures(run):
        kind = FAST if FAST in figure.title else SLOW
        assert kind in figure.title
        assert figure.data is not None
        layouts = set(figure.data["layout"])
        assert layouts <= {*ON_SLOW, HOSTILE} if kind == SLOW else not layouts & set(ON_SLOW)
    exported = export(run, "csv", "speed").decode()
    assert "Machine" in exported.splitlines()[0]
    board = scoreboard(run, findings(run))
    assert all(kind in q.column for q, kind in zip(board.questions, map(_kind, board.questions)) if kind)


def _kind(question: Finding) -> str:
    return next((kind for kind in (FAST, SLOW) if kind in question.topic), "")


def test_a_kind_with_one_layout_answers_nothing_where_another_has_more(tmp_path: Path) -> None:
    lines = [line for line in timed() if line.layout in ("swa", "softmax", "linear")]
    found = asked(read_run(make(tmp_path / "run", lines)), "Fastest training step")
    assert len(found) == 1 and all(FAST in topic for topic in found)
    assert "not compared: linear." in next(iter(found.values())).sentence


def test_one_kind_is_told_as_one_machine_is(tmp_path: Path) -> None:
    lines = [line for line in timed() if line.layout not in (*ON_SLOW, HOSTILE)]
    plain = [line.model_copy(update={"machine": None, "peak_bytes": None}) for line in lines]
    here, there = read_run(make(tmp_path / "two", lines)), read_run(make(tmp_path / "one", plain))
    pd.testing.assert_frame_equal(summary(here), summary(there))
    assert [f.sentence for f in findings(here)] == [f.sentence for f in findings(there)]
    assert not here.places and not here.kinds


def test_old_lines_without_a_machine_are_of_the_environments_kind(tmp_path: Path) -> None:
    old = [line.model_copy(update={"machine": None}) if line.machine != SLOW else line for line in timed()]
    lines = [line if line.layout not in ON_SLOW else place(line, "<i>node-c</i>") for line in old]
    run = read_run(make(tmp_path / "run", lines))
    assert {place.kind for place in run.places.values()} == {"Example CPU <b>9000</b>, 2 cores", SLOW}


def test_a_measure_that_nobody_here_knows_is_not_pooled_over_kinds(tmp_path: Path) -> None:
    lines = []
    for seed, name in enumerate(NAMES):
        line = next(iter(timed()))
        probe = {"measure": "a_plug_in", "metrics": {"score": 1.0 + seed}, "seed": seed, "case": f"{seed:012x}"}
        lines.append(place(line.model_copy(update=probe), name))
    table = summary(read_run(make(tmp_path / "apart", lines)))
    assert table.set_index("machine")["count"].to_dict() == {FAST: 2, SLOW: 1}
    shared = [line.model_copy(update={"exclusive": False}) for line in lines]
    together = summary(read_run(make(tmp_path / "together", shared)))
    assert together["count"].tolist() == [3] and "machine" not in together


def test_compare_pairs_one_kind_and_says_what_it_left_out(mixed: Path, tmp_path: Path) -> None:
    moved = [place(line, "<i>node-c</i>") if line.layout == "softmax" else line for line in timed()]
    found = compare(mixed, make(tmp_path / "after", moved))
    layouts = {change.layout for change in found.changes}
    assert "softmax" not in layouts and {"swa", "linear"} <= layouts
    refused = next(item for item in found.refused if (item.measure, item.layout) == ("speed", "softmax"))
    assert FAST in refused.why and SLOW in refused.why
    some = [
        place(line, "<i>node-c</i>") if line.layout == "swa" and line.parameters["lengths"] == [256] else line
        for line in timed()
    ]
    partly = compare(mixed, make(tmp_path / "partly", some))
    assert partly.only_before[("speed", "swa")] == 1  # now of another kind
    assert not any("256" in c.what for c in partly.changes if c.layout == "swa" and c.measure == "speed")
    assert any("several kinds of machines" in warning for warning in partly.warnings)


def test_compare_refuses_two_runs_on_two_kinds(tmp_path: Path) -> None:
    fast = [line for line in timed() if line.layout in ("swa", "softmax")]
    slow = [place(line, "<i>node-c</i>") for line in fast]
    with pytest.raises(ValueError, match="measured on another machine"):
        compare(make(tmp_path / "fast", fast), make(tmp_path / "slow", slow))


def test_the_panel_says_how_many_kinds_and_which_software_differs(mixed: Path, tmp_path: Path) -> None:
    found = doubts(read_run(mixed))
    assert any("not all was timed on one kind of machine" in doubt.text.lower() for doubt in found)
    assert not any("same software" in doubt.text for doubt in found)
    machines = known(**{"node-b": {"packages": {"torch": "2.12.1"}}})
    other = doubts(read_run(make(tmp_path / "run", timed()[:8], **machines)))
    said = next(doubt for doubt in other if "same software" in doubt.text)
    assert "torch (2.13.0 on node-a and <i>node-c</i>; 2.12.1 on node-b)" in said.text
    assert said.short == "machines differ in torch"


def test_the_page_says_what_was_lost_who_took_part_and_what_is_doubtful(tmp_path: Path) -> None:
    lines = [line for line in timed() if line.measure == "memory"]
    lines[0] = lines[0].model_copy(update={"attempts": [LOST]})
    failure: dict[str, Any] = {"status": "out_of_memory", "error": "needs more", "metrics": None}
    lines[-1] = lines[-1].model_copy(update=failure)
    environment = {"plugins_failed": {"<b>bad</b> plug-in": "ImportError: no | module"}, "rebuilt": True}
    folder = make(tmp_path / "run", lines, **environment)
    html = write_report(folder).read_text()
    markdown = (folder / "report.md").read_text()
    for text in (html, markdown):
        assert "Lost attempts" in text and "12 s" in text
        assert "3 machines of 2 kinds" in text
        assert "could not be loaded" in text and "rebuilt from its results" in text
        assert "1.23 GB" in text and "Peak memory" in text
        assert "<i>node-c</i>" not in text and "<b>bad</b>" not in text
    assert "the node \\| died" in markdown and "no \\| module" in markdown
    rows = {row["Machine"]: row for row in export_rows(folder, "machines")}
    assert set(rows) == set(NAMES) and sum(int(row["Cases"]) for row in rows.values()) == len(lines)


def export_rows(folder: Path, table: str) -> list[dict[str, Any]]:
    from io import BytesIO

    return pd.read_csv(BytesIO(export(read_run(folder), "csv", table)), dtype=str).to_dict("records")


def test_the_site_keeps_a_mixed_run_apart_from_those_of_one_kind(mixed: Path) -> None:
    found = read_site_run(mixed, "mixed", mixed)
    assert found.machine == f"2 kinds of machines: {FAST}; {SLOW}"


def test_a_single_kind_has_no_table_of_machines(make_run: Callable[..., Path]) -> None:
    folder = make_run(lambda line: line.measure == "speed")
    names = json.loads(export(read_run(folder), "json"))["run"]["environment"]
    assert "machines" not in names
    with pytest.raises(ValueError, match="no table 'machines'"):
        export(read_run(folder), "csv", "machines")
