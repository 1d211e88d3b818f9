"""Who was taught is said first, and of those who were not no accuracy stands anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports.page import parts
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.taught import statements
from mixerzoo.reports.verdict import findings, training_statement

from .conftest import BUDGET, HOSTILE, UNTAUGHT, UNTAUGHT_ACCURACY, made_up_lines, write_run
from .test_report_tables import edit_lines

MakeRun = Callable[..., Path]
OF_RECALL = ("tuning", "training", "recall")


@pytest.fixture(scope="module")
def run(made_up_run: Path) -> RunData:
    return read_run(made_up_run)


def table(run: RunData, name: str):
    return next(t for part in parts(run) for t in part.tables if t.name == name)


def test_the_first_sentences_are_of_the_untaught(run: RunData) -> None:
    bar = "seeds reached 95 % at 256 tokens, 16 needles, within 13.1 M tokens."
    assert statements(run) == [
        f"swa was not taught: 0 of 3 {bar}",
        f"linear was not taught: 0 of 3 {bar}",
        f"gated_deltanet: 2 of 3 {bar}",
    ]


def test_the_page_and_the_markdown_begin_with_them(made_up_report: Path) -> None:
    for name, verdict in (("report.html", 'class="verdict"'), ("report.md", "- **")):
        text = (made_up_report.parent / name).read_text(encoding="utf-8")
        first = text.index("swa was not taught: 0 of 3 seeds")
        assert first < text.index(verdict) and "not taught" not in text[:first]


def test_no_accuracy_of_an_untaught_layout_stands_anywhere(made_up_report: Path) -> None:
    folder = made_up_report.parent
    kinds = ("*.html", "*.md", "*.csv", "*/*.csv", "*/*.svg")
    files = [file for kind in kinds for file in folder.glob(kind)]
    assert len(files) > 20
    for file in files:
        text = file.read_text(encoding="utf-8")
        text = text.partition("<script>")[0] if file.suffix == ".html" else text  # before Vega's own code
        assert not re.search(rf"{UNTAUGHT_ACCURACY}|(?<![\d.]){100 * UNTAUGHT_ACCURACY:.1f} %", text), file


def test_recall_of_an_untaught_model_is_left_out_and_counted(make_run: MakeRun, tmp_path: Path) -> None:
    lines = [line for line in made_up_lines() if line.layout in ("swa", "ttt_linear") and line.measure in OF_RECALL]
    stray = [
        line.model_copy(update={"layout": "swa", "case": f"{line.case}-stray"})
        for line in lines
        if line.measure == "recall"
    ]
    run = read_run(write_run(tmp_path / "stray", [*lines, *stray]))
    assert set(run["recall"]["layout"]) == set(run["answers"]["layout"]) == {"ttt_linear"}
    assert training_statement(run)[-1].startswith("18 cases of recall are left out")
    for name in ("recall-by-length", "recall-by-load", "recall-by-depth", "recall-recent", "recall-headline"):
        row = next(row for row in table(run, name).rows if row[0] == "swa")
        assert set(row[1:]) <= {"not taught", "–", "0 of 3 seeds"} and "not taught" in row
    (part,) = [p for p in parts(run) if p.name == "recall"]
    for figure in part.figures:
        if not figure.name.startswith("trade-off"):
            rows = [row for data in figure.spec["datasets"].values() for row in data]
            assert not [row for row in rows if row.get("layout") == "swa"], figure.name


def test_accuracies_of_tuning_are_shown_of_taught_layouts_alone(run: RunData) -> None:
    tried = table(run, "tuning")
    assert tried.columns == ["Layout", "Tried", "Rung 1, 819 k tokens", "Rung 2, 3.28 M tokens", "Chosen"]
    rows = {(row[0], row[1]): row[2:] for row in tried.rows}
    assert rows["swa", "learning_rate = 0.001"] == ["4.600, not taught", "–", ""]
    assert rows["swa + fwpkm", "learning_rate = 0.002"] == ["2.500, 25.0 %", "2.000, 50.0 %", "chosen"]
    assert rows["swa + fwpkm", "learning_rate = 0.004"] == ["3.300, 25.0 %", "2.800, 50.0 %", ""]
    assert run["tuning"][run["tuning"]["layout"].isin(UNTAUGHT)]["accuracy"].isna().all()


def test_tokens_to_solve_have_their_censored_seeds(run: RunData) -> None:
    rows = {row[0]: row[1:] for row in table(run, "solve").rows}
    assert rows["swa"][:3] == ["0 of 3 seeds", "not taught", "> 13.1 M, > 13.1 M, > 13.1 M"]
    assert rows["gated_deltanet"][:3] == ["2 of 3 seeds", "3.90 M", "2.90 M, 3.90 M, > 13.1 M"]
    assert rows["softmax"][3] == "learning_rate = 0.002"
    (figure,) = [f for part in parts(run) for f in part.figures if f.name == "solve"]
    marks = [row for data in figure.spec["datasets"].values() for row in data if "read" in row]
    assert len(marks) == 7 * 3
    censored = [(m["layout"], m["read"]) for m in marks if m["outcome"] == "training ended without the bar"]
    assert censored == [*[("swa", BUDGET)] * 3, *[("linear", BUDGET)] * 3, ("gated_deltanet", BUDGET)]


def test_the_verdict_counts_layouts_that_every_seed_was_taught(run: RunData) -> None:
    taught = findings(run)[0]
    assert (
        taught.topic == "Taught with every seed: 95 % at 256 tokens, 16 needles" and taught.winner == "4 of 7 layouts"
    )
    assert taught.sentence.startswith("Median tokens to solve, over seeds: softmax 3.70 M tokens (3 of 3 seeds); ")
    assert HOSTILE in taught.sentence and "linear " not in taught.sentence.replace("ttt_linear ", "")


def test_a_training_that_broke_off_did_not_teach(make_run: MakeRun) -> None:
    def fail(line: dict) -> None:
        if line["layout"] == "ttt_linear" and line["measure"] == "training":
            line |= {"status": "not_finite", "metrics": None, "error": "loss is nan"}

    keep: Callable[[ResultLine], bool] = lambda line: line.layout == "ttt_linear" and line.measure == "training"  # noqa: E731
    run = read_run(edit_lines(make_run(lambda line: keep(line) and line.parameters["task"]["task"] == "needle"), fail))
    (said,) = statements(run)
    assert said == (
        "ttt_linear was not taught: 0 of 3 seeds reached 95 % at 256 tokens, 16 needles (3 broke off: not finite)."
    )
    assert findings(run)[0].sentence == "No layout was taught, so nothing is said of recall."


def test_a_layout_whose_tuning_failed_was_not_taught(make_run: MakeRun) -> None:
    def fail(line: dict) -> None:
        line |= {"status": "not_finite", "metrics": None, "error": "loss is nan"}

    run = read_run(edit_lines(make_run(lambda line: line.measure == "tuning" and line.layout == "ttt_linear"), fail))
    assert statements(run) == ["ttt_linear was not taught: all of its tuning failed (not finite)."]


def test_a_suite_without_a_bar_says_that_learning_is_not_known(make_run: MakeRun) -> None:
    def lift(line: dict) -> None:
        line["parameters"].get("training", {}).pop("bar", None)
        if line["measure"] == "training":
            line["metrics"]["training"] |= {"bar": None, "tokens_to_solve": None}

    keep: Callable[[ResultLine], bool] = lambda line: line.layout == "ttt_linear" and line.measure in OF_RECALL  # noqa: E731
    run = read_run(edit_lines(make_run(keep), lift))
    assert statements(run) == [] and "The suite sets no bar" in training_statement(run)[0]
    assert len(run["answers"]) and table(run, "recall-headline").rows[0][1] == "no bar"
    assert not [f for part in parts(run) for f in part.figures if f.name == "solve"]
