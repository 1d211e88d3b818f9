"""The scoreboard and the answers without a browser: what stands in them, and how long lists are folded."""

import csv
import io
from pathlib import Path

import pytest
from mixerzoo.reports.answers import FOLDED, Answer, Bars, answers
from mixerzoo.reports.doubts import Doubt
from mixerzoo.reports.fairness import Fairness
from mixerzoo.reports.finding import Finding, Score
from mixerzoo.reports.scoreboard import scoreboard
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.verdict import findings

from .conftest import HOSTILE


@pytest.fixture(scope="module")
def run(made_up_run: Path) -> RunData:
    return read_run(made_up_run)


def test_the_scoreboard_has_a_row_for_each_layout_and_a_column_for_each_question(run: RunData) -> None:
    board = scoreboard(run, findings(run))
    assert [row.layout for row in board.rows] == run.layouts
    assert {question.measure for question in board.questions} == {"training", "recall", "speed", "memory", "perplexity"}
    assert all(len(row.scores) == len(board.questions) for row in board.rows)
    index = next(i for i, question in enumerate(board.questions) if question.measure == "recall")
    scores = {row.layout: row.scores[index] for row in board.rows}
    assert scores["swa"] is not None and scores["swa"].text == "not taught" and scores["swa"].value is None
    best = max((score for score in scores.values() if score and score.value is not None), key=lambda s: s.value or 0)
    assert best.best and "softmax" in board.rows[2].families
    assert not scoreboard(run, [Finding("a question without a column", None, "", "")]).rows


def test_the_scoreboard_as_csv_has_a_line_for_each_score(run: RunData) -> None:
    board = scoreboard(run, findings(run))
    lines = list(csv.DictReader(io.StringIO(board.csv())))
    assert len(lines) == sum(score is not None for row in board.rows for score in row.scores)
    assert {line["layout"] for line in lines} == set(run.layouts) and HOSTILE in run.layouts
    assert {line["best"] for line in lines} == {"True", "False"} and all(line["parameters"] for line in lines)


def bar(number: int, outcome: str) -> Finding:
    known = {"evidence": "table-b", "measure": "op_speed"}
    return Finding(f"Bar {number}", outcome, "2.0", "x: 2.0; the bar is at least 1.", **known)


def test_many_bars_are_one_answer_worst_first_and_few_stay_apart() -> None:
    doubt = Doubt("Only three rounds.", "three rounds", frozenset({"op_speed"}))
    fair = Fairness([], None, [doubt])
    outcomes = ["met", "not met", "met", "not measured", "met"]
    few = answers([bar(i, outcome) for i, outcome in enumerate(outcomes[:FOLDED])], fair, set())
    assert [answer.finding.topic for answer in few if isinstance(answer, Answer)] == [
        "Bar 0",
        "Bar 1",
        "Bar 2",
        "Bar 3",
    ]
    other = Finding("Fastest", "a", "1", "a runs.", scores=(Score("a", "1", 1.0),), measure="speed")
    first, last = answers([*(bar(i, outcome) for i, outcome in enumerate(outcomes)), other], fair, {"table-b"})
    assert isinstance(first, Bars) and first.met == 3 and isinstance(last, Answer) and not last.doubts
    shown = [(answer.finding.winner, answer.evidence, answer.doubts) for answer in first.answers]
    assert shown[:2] == [(outcome, "table-b", ["three rounds"]) for outcome in ("not measured", "not met")]


def test_an_answer_folds_after_its_first_sentence_and_links_only_to_what_is_there() -> None:
    fair = Fairness([], None, [])
    long = "The first sentence is as long as a sentence has to be, to stand alone. The second follows. And the third."
    finding = Finding("topic", None, "", long, evidence="figure-gone")
    (answer,) = answers([finding], fair, {"figure-there"})
    assert isinstance(answer, Answer) and answer.evidence == ""
    assert answer.first.endswith("stand alone.") and answer.rest == "The second follows. And the third."
    brief = Finding("topic", "a", "1", "a wins. It does.", evidence="figure-there")
    (short,) = answers([brief], fair, {"figure-there"})
    assert isinstance(short, Answer) and (short.first, short.rest) == ("a wins. It does.", "")
    assert short.shown_by == "see the chart"
