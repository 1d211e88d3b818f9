"""Many results: charts of medians and quartiles, tables of first rows, and nothing lost beside them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.reports.inference import DRAWS, MANY, drawn_medians
from mixerzoo.reports.labels import beside_points
from mixerzoo.reports.page import MOST_ROWS, parts, write_report
from mixerzoo.reports.tables import RunData, read_run

from .conftest import ENVIRONMENT, LAYOUTS, made_up_lines

RESULTS, SEEDS = 5_000, 110
LABELS = ("softmax", "ttt_linear")


def copies() -> list[ResultLine]:
    """Trainings of two layouts with many seeds, and the rest of `RESULTS` timings of them."""
    kept = [line for line in made_up_lines() if line.layout in LABELS and line.status == "ok" and line.seed == 0]
    taught = [line for line in kept if line.measure == "training" and "needle" in str(line.parameters["task"])]
    timed = [line for line in kept if line.measure == "speed" and line.parameters["modes"] == ["forward"]]
    found = [again(line, seed) for seed in range(SEEDS) for line in taught]
    return (found + [again(line, seed) for seed in range(RESULTS) for line in timed])[:RESULTS]


def again(line: ResultLine, seed: int) -> ResultLine:
    dice = random.Random(f"{line.case}{seed}")
    metrics = dict(line.metrics or {})
    if line.measure == "training":
        solved = 1_000_000 + 10_000 * seed
        metrics["training"] = {**metrics["training"], "tokens_to_solve": solved}
    return line.model_copy(update={"seed": seed, "case": f"{dice.getrandbits(48):012x}", "metrics": metrics})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("large") / "run")
    run.write_suite({"name": "large", "layouts": {label: LAYOUTS[label].line for label in LABELS}})
    run.write_environment(ENVIRONMENT)
    run.results_path.write_bytes(b"".join(encode_line(line.model_dump()) for line in copies()))
    write_report(run.folder)
    return run.folder


@pytest.fixture(scope="module")
def run(large: Path) -> RunData:
    return read_run(large)


def test_no_chart_has_a_mark_for_each_of_many_results(run: RunData) -> None:
    assert len(run.lines) == RESULTS
    figures = {figure.name: figure for part in parts(run) for figure in part.figures}
    assert {"solve", "training", "learning", "speed", "latency"} <= set(figures)
    for figure in figures.values():
        rows = sum(len(rows) for rows in figure.spec["datasets"].values())
        assert rows < 300, figure.name
    solve = figures["solve"].data
    assert solve is not None and solve["seeds"].tolist() == [f"{SEEDS} seeds"] * 2
    assert solve["tokens read"].tolist() == [1_000_000 + 10_000 * (SEEDS - 1) / 2] * 2
    curves = figures["training"].data
    assert curves is not None
    own = run["curves"][run["curves"]["layout"] == "softmax"]
    drawn = curves[curves["layout"] == "softmax"]
    assert drawn["values"].sum() == len(own)  # every point of every curve is behind one of the marks
    assert (drawn["first quartile"] <= drawn["loss"]).all() and (drawn["loss"] <= drawn["third quartile"]).all()
    assert "a point stands for" in figures["training"].caption


def test_the_page_stays_small_and_what_it_leaves_out_lies_beside_it(large: Path, run: RunData) -> None:
    html, markdown = (large / "report.html").read_text(), (large / "report.md").read_text()
    assert len(html) < 5_000_000
    for text in (html, markdown):
        assert f"The first {MOST_ROWS} of {2 * SEEDS} rows; all are in tables/page-training.csv." in text
    assert 'href="tables/page-training.csv"' in html
    assert len(pd.read_csv(large / "tables" / "page-training.csv")) == 2 * SEEDS
    assert len(pd.read_csv(large / "tables" / "speed.csv")) == RESULTS - 2 * SEEDS
    assert f"0 to {SEEDS - 1} ({SEEDS} of them)" in html


def test_what_is_equal_is_held_once(run: RunData) -> None:
    timed = [line for line in run.lines if line.measure == "speed"]
    assert len({id(line.parameters["model"]) for line in timed}) == len(LABELS)
    assert len({id(line.backends) for line in timed}) == len({str(line.backends) for line in timed})
    assert replace(timed[0], layout="other").metrics is timed[0].metrics


@pytest.mark.parametrize("size", [MANY + 1, MANY + 2, 700])
def test_medians_of_many_rounds_are_drawn_by_the_law_of_resamples(size: int) -> None:
    rng = np.random.default_rng(size)
    rounds = rng.lognormal(size=size)
    resampled = np.median(rounds[rng.integers(size, size=(10 * DRAWS, size))], axis=1)
    drawn, other = drawn_medians(rounds.tobytes()), drawn_medians(rounds.tobytes(), size)
    error = 6 * resampled.std() / np.sqrt(DRAWS)
    for share in (0.1, 0.5, 0.9):
        assert abs(np.quantile(drawn, share) - np.quantile(resampled, share)) < error
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.15  # two sides of a ratio are drawn apart


def test_a_name_moves_away_from_a_crowded_place() -> None:
    first, second = beside_points([(50.0, 50.0), (52.0, 50.0)], ["one", "two"], [5.0, 5.0], 400.0)
    assert (first.dx, first.dy, first.align) != (second.dx, second.dy, second.align)
