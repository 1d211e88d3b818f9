"""Recall in a report: the cell of the verdict, what may be said of pairs, three axes, failures, state bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports.inference import Comparison, Ranking
from mixerzoo.reports.page import parts
from mixerzoo.reports.recall import Cell, Recall, asked
from mixerzoo.reports.recall_figures import family
from mixerzoo.reports.recall_findings import told
from mixerzoo.reports.table import Table
from mixerzoo.reports.tables import RunData, read_run
from mixerzoo.reports.verdict import findings

from .conftest import HOSTILE, LOADS, made_up_lines, write_run
from .test_report_tables import edit_lines

MakeRun = Callable[..., Path]


def of_recall(*layouts: str) -> list[ResultLine]:
    return [line for line in made_up_lines() if line.measure in ("training", "recall") and line.layout in layouts]


def only(run: RunData) -> Recall:
    (recall,) = asked(run)
    return recall


def tables(run: RunData) -> dict[str, Table]:
    return {t.name: t for part in parts(run) for t in part.tables}


def headline(run: RunData):
    return next(f for f in findings(run) if f.topic.startswith("Recall: "))


@pytest.fixture(scope="module")
def run(made_up_run: Path) -> RunData:
    return read_run(made_up_run)


# --- The cell of the verdict ---


def test_the_headline_is_the_greatest_length_and_load_that_all_were_asked(run: RunData) -> None:
    recall = only(run)
    assert recall.headline == Cell(8192, 64, 1, "fresh")  # softmax failed there, and was asked
    assert recall.claimed == [
        ("Recall", Cell(8192, 64, 1, "fresh")),
        ("Length alone", Cell(8192, 16, 1, "fresh")),
        ("Load alone", Cell(256, 64, 1, "fresh")),
    ]


def test_a_length_that_few_were_asked_is_not_the_headline(tmp_path: Path) -> None:
    lines = of_recall("swa + fwpkm", "ttt_linear", HOSTILE)
    kept = [li for li in lines if li.layout == HOSTILE or li.parameters.get("lengths", [0]) <= [2048]]
    assert only(read_run(write_run(tmp_path / "run", kept))).headline == Cell(2048, 64, 1, "fresh")


# --- What may be said ---


def test_a_single_best_is_better_than_each_other(tmp_path: Path) -> None:
    best = headline(read_run(write_run(tmp_path / "run", of_recall("swa + fwpkm", "ttt_linear", HOSTILE))))
    assert best.topic == (
        "Recall: 64 needles at 8,192 tokens, 32 times the greatest trained length and 4 times the greatest trained load"
    )
    assert best.winner == "swa + fwpkm"
    brackets = r"\[[\d., ]+\]"
    told = rf"swa \+ fwpkm recalls 98.7 % {brackets}, better than </script>.* by 25.4 points {brackets} and ttt_linear "
    assert re.match(rf"{told}\(35.6 % {brackets}\) by 63.1 points {brackets}\.", best.sentence)


def test_a_layout_with_few_taught_seeds_leaves_the_verdict_open(run: RunData) -> None:
    best = headline(run)
    assert best.winner is None and best.open == "cannot tell: too few seeds"
    for said in (
        "With 2 seeds in common, too few for a claim about layouts, swa + fwpkm lies above gated_deltanet",
        "for these trained models, on new examples too",
        "No answers at this length: softmax (out of memory).",
        "Over the taught seeds only: gated_deltanet (2 of 3 seeds).",
        "Not taught, so nothing is claimed: swa and linear.",
    ):
        assert said in best.sentence, said


def test_equal_layouts_cannot_be_told_apart(tmp_path: Path) -> None:
    lines = of_recall("ttt_linear")
    twins = [line.model_copy(update={"layout": "softmax", "case": f"{line.case}-twin"}) for line in lines]
    run = read_run(write_run(tmp_path / "run", [*lines, *twins]))
    best = headline(run)
    assert best.winner is None and best.open == "cannot tell"
    assert best.sentence.startswith("Cannot tell which recalls most: ")
    assert tables(run)["recall-pairs"].rows[0][1].endswith(" cannot tell")


def test_what_only_the_correction_takes_away_is_said_apart() -> None:
    close = Comparison(0.01, -0.02, 0.04, "cannot tell", 0.4, 3, "new seeds")
    far = Comparison(0.6, 0.5, 0.7, "better", 0.02, 3, "new seeds")
    ranking = Ranking("a", None, ("b", "c"), {"c": far, "b": close}, {"b": 1.0, "c": 0.06})
    assert told(ranking, {"a": "99 %", "b": "98 %", "c": "39 %"}) == [
        "Cannot tell which recalls most: a (99 %) and b (98 %); their paired differences leave it open.",
        "a lies above c (39 %) by 60.0 points [50.0, 70.0]: too little for a claim once corrected for all 3 pairs.",
    ]


def test_one_seed_says_nothing_of_layouts(tmp_path: Path) -> None:
    lines = [line for line in of_recall("swa + fwpkm", "ttt_linear") if line.seed == 0]
    run = read_run(write_run(tmp_path / "run", lines))
    best = headline(run)
    assert best.winner is None and "With one seed in common, too few for a claim" in best.sentence
    assert "One seed (0): intervals hold for these trained models, not for the layout." in best.sentence
    figure = next(f for part in parts(run) for f in part.figures if f.name == "recall")
    subtitle = figure.spec["title"]["subtitle"]
    assert subtitle[:2] == [
        "one taught seed, bands: 95 % intervals, dotted: chance",
        "intervals of these trained models, not of new seeds (fewer than 3): all",
    ]


def test_a_single_layout_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    alone = headline(read_run(write_run(tmp_path / "run", of_recall("ttt_linear"))))
    assert alone.winner is None and alone.open == "nothing to compare with"
    assert alone.sentence.startswith("ttt_linear recalls 35.6 % [")


def test_layouts_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    lines = [li for li in of_recall("swa + fwpkm", "ttt_linear") if (li.seed == 2) == (li.layout == "ttt_linear")]
    best = headline(read_run(write_run(tmp_path / "run", lines)))
    assert "ttt_linear (31.9 %" in best.sentence and "shares no taught seed with the others" in best.sentence


def test_layouts_at_chance_are_named(make_run: MakeRun) -> None:
    def guess(line: dict) -> None:
        if line["measure"] == "recall" and line["layout"] == "ttt_linear":
            for answer in line["metrics"]["answers"]:
                answer["hits"] = ["".join("0" if mark == "1" else mark for mark in text) for text in answer["hits"]]

    keep: Callable[[ResultLine], bool] = lambda line: line.layout in ("swa + fwpkm", "ttt_linear")  # noqa: E731
    folder = make_run(lambda line: keep(line) and line.measure in ("training", "recall"))
    assert (
        "Not shown to be above chance (1.6 %) once corrected for all layouts: ttt_linear."
        in headline(read_run(edit_lines(folder, guess))).sentence
    )


def test_pairs_have_differences_and_verdicts_in_the_order_of_accuracy(run: RunData) -> None:
    pairs = tables(run)["recall-pairs"]
    assert pairs.columns == ["Layout, minus", HOSTILE, "ttt_linear", "gated_deltanet"]
    assert [row[0] for row in pairs.rows] == ["swa + fwpkm", HOSTILE, "ttt_linear"]
    assert pairs.rows[0][2] == "+63.1 [+57.1, +69.1] better"
    assert pairs.rows[0][3].endswith("cannot tell")  # two seeds in common
    assert pairs.rows[2][1:3] == ["", ""]


# --- Tables ---


def test_recent_answers_are_counted_apart(run: RunData) -> None:
    recall = only(run)
    assert set(recall.at(Cell(512, 16, 1, "fresh"))["total"]) == {3 * (6 * 16 - 1), 2 * (6 * 16 - 1)}
    recent = {row[0]: row[1:] for row in tables(run)["recall-recent"].rows}
    assert all(cell.endswith(" of 3") for cell in recent["ttt_linear"][1:])


def test_every_table_of_accuracy_has_state_bytes_beside_it(run: RunData) -> None:
    without = ("recall-pairs", "sparse-memories")
    shown = [t for part in parts(run) for t in part.tables if part.name == "recall" and t.name not in without]
    assert len(shown) == 1 + len(LOADS) + 2 + 1 + 1 + 1 + 1
    assert all("State" in t.columns for t in shown)
    by_length = tables(run)["recall-by-length"]
    states = {row[0]: row[by_length.columns.index("State")] for row in by_length.rows}
    assert states["softmax"] == "262 kB to 4.19 MB" and states["ttt_linear"] == "41.5 kB" and states["swa"] == "–"


def test_a_length_that_failed_is_a_result(run: RunData) -> None:
    found = tables(run)
    for name in ("recall-headline", "recall-by-length", "recall-by-depth", "recall-by-passes"):
        row = next(row for row in found[name].rows if row[0] == "softmax")
        assert "out of memory" in row, name
    assert found["recall-by-seed"].rows[6][0] == "softmax, seed 0"
    assert found["recall-by-seed"].rows[6][-1] == "out of memory"
    figure = next(f for part in parts(run) for f in part.figures if f.name == "recall")
    marks = [row for data in figure.spec["datasets"].values() for row in data if "cause" in row]
    assert [(m["layout"], m["length"], m["from"], m["cause"]) for m in marks] == [
        ("softmax", 8192, 4096, "out of memory")
    ]
    labels = [row["label"] for data in figure.spec["datasets"].values() for row in data if "label" in row]
    assert "softmax\u2002out of memory at 8,192" in labels and "swa + fwpkm\u200298.7 %" in labels


def test_some_seeds_that_failed_are_said_beside_the_others(tmp_path: Path) -> None:
    failure: dict[str, Any] = {"status": "timeout", "metrics": None, "error": "late"}
    lines = [
        line.model_copy(update=failure) if line.seed == 2 and line.parameters.get("lengths") == [8192] else line
        for line in of_recall("swa + fwpkm", "ttt_linear")
    ]
    row = tables(read_run(write_run(tmp_path / "run", lines)))["recall-by-length"].rows[1]
    assert row[0] == "ttt_linear" and row[-1].endswith(" (1 of 3 seeds: timeout)")


def test_passes_and_memories_stand_beside_each_other(run: RunData) -> None:
    passes = tables(run)["recall-by-passes"]
    assert passes.title == "Needles recalled, by passes and memory: 16 needles at 8,192 tokens"
    assert passes.columns == ["Layout", "State", "fresh, 1 pass", "fresh, 2 passes", "persistent, 1 pass"]
    row = next(row for row in passes.rows if row[0] == "gated_deltanet")
    shares = [float(cell.split()[0]) for cell in row[2:]]
    assert shares[0] < shares[1]


def test_no_other_number_is_pooled_over_passes_or_memories(run: RunData) -> None:
    cells = only(run).cells
    assert not cells.duplicated(["layout", "length", "load", "passes", "memory"]).any()
    plain = cells[(cells["load"] == 16) & (cells["passes"] == 1) & (cells["memory"] == "fresh")]
    by_length = next(
        t
        for part in parts(run)
        for t in part.tables
        if t.name.startswith("recall-by-length") and "16 needles" in t.title
    )
    row = next(row for row in by_length.rows if row[0] == "gated_deltanet")
    shown = [float(cell.split()[0]) / 100 for cell in row[2:]]
    own = plain[plain["layout"] == "gated_deltanet"].sort_values("length")["accuracy"]
    assert shown == pytest.approx(own.tolist(), abs=6e-4)


# --- Charts ---


def test_the_trained_range_is_shaded(run: RunData) -> None:
    charts = {f.name: f for part in parts(run) for f in part.figures}
    bands = [row for data in charts["recall"].spec["datasets"].values() for row in data if "until" in row]
    assert bands == [{"length": 128, "until": 256, "text": "trained: 64 to 256 tokens, 4 to 16 needles"}]
    loads = [row for data in charts["recall-load"].spec["datasets"].values() for row in data if "until" in row]
    assert loads == [{"load": 4, "until": 16, "text": "trained"}]


def test_untaught_layouts_are_in_the_subtitle(run: RunData) -> None:
    (part,) = [p for p in parts(run) if p.name == "recall"]
    for figure in part.figures:
        if figure.name not in ("trade-off", "gates", "slots"):
            subtitle = figure.spec["title"]["subtitle"]
            assert "not taught, so not asked: swa (0 of 3 seeds), linear (0 of 3 seeds)" in subtitle, figure.name


def test_a_line_joins_the_sizes_of_a_family(tmp_path: Path) -> None:
    assert family("FwPKM · 1,024 slots") == ("FwPKM", "1,024 slots") and family("softmax") == ("softmax", "")
    sizes = {"swa + fwpkm": "FwPKM · 4,096 slots", "ttt_linear": "FwPKM · 256 slots", HOSTILE: HOSTILE}
    lines = [line.model_copy(update={"layout": sizes[line.layout]}) for line in of_recall(*sizes)]
    run = read_run(write_run(tmp_path / "run", lines, layouts=dict.fromkeys(sizes.values(), "fwpkm")))
    figure = next(f for part in parts(run) for f in part.figures if f.name == "recall-state")
    rows = [row for data in figure.spec["datasets"].values() for row in data]
    points = [(r["layout"], r["full"], r["state_bytes"]) for r in rows if "label" not in r]
    assert points == [
        ("FwPKM", "FwPKM · 256 slots", 41_472),
        ("FwPKM", "FwPKM · 4,096 slots", 223_840),
        (HOSTILE, HOSTILE, 223_840),
    ]
    labels = {r["full"]: r["label"] for r in rows if "label" in r}
    assert [labels[full] for _, full, _ in points[:2]] == ["256 slots", "FwPKM · 4,096 slots"]


def test_a_task_without_a_load_is_asked_by_length_alone(make_run: MakeRun) -> None:
    def without_load(line: dict) -> None:
        if line["parameters"]["task"]["task"] != "text":
            line["parameters"]["task"] = {"task": "induction"}
        if line["measure"] == "recall":
            kept = {"load": 16, "passes": 1, "memory": "fresh"}
            for key in ("rows", "answers"):
                found = [entry for entry in line["metrics"][key] if kept.items() <= entry.items()]
                line["metrics"][key] = [{**entry, "load": None} for entry in found]

    keep: Callable[[ResultLine], bool] = lambda line: line.layout in ("swa + fwpkm", "ttt_linear")  # noqa: E731
    folder = make_run(lambda line: keep(line) and line.measure in ("training", "recall"))
    run = read_run(edit_lines(folder, without_load))
    assert headline(run).topic.startswith("Recall: 8,192 tokens, 32 times")
    names = {t.name for part in parts(run) for t in part.tables}
    assert "recall-by-length" in names and not names & {"recall-by-load", "recall-by-passes"}
    assert tables(run)["recall-by-length"].title == "Answers right, by length"
    drawn = {f.name for part in parts(run) for f in part.figures if part.name == "recall"}
    assert drawn == {"recall", "recall-state", "recall-depth", "gates", "slots"}
