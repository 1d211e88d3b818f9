"""Op speed in a report: a verdict for every bar, tables, the summary, and foreign text that stays text."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports import write_report
from mixerzoo.reports.page import parts
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import read_run
from mixerzoo.reports.verdict import findings

from .conftest import HOSTILE, write_run

BARS = [{"kind": "faster", "mode": "train", "backend": "torch", "over": HOSTILE, "value": 25.0}]
ENTRY = {"measure": "op_speed", "op": "fwpkm", "modes": ["train"], "lengths": [2048, 4096], "batch": 1, "bars": BARS}


def row(backend: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "backend": backend,
        "mode": "train",
        "tokens": tokens,
        "batch": 1,
        "units": tokens,
        "median": seconds,
        "q1": 0.9 * seconds,
        "q3": 1.1 * seconds,
        "rounds": 3,
        "samples": [seconds] * 3,
        "peak_bytes": tokens * 1000,
        "method": "allocator <hooks>",
        "floor_bytes": 10**8,
        "floor_seconds": 0.01,
    }


def ratio(kind: str, value: float, tokens: int | None, bar: float | None, over: str | None = None) -> dict[str, Any]:
    met = None if bar is None else value >= bar if kind == "faster" else value <= bar
    exact = {"value": value, "low": value, "high": value} if kind == "fit" else {}
    span = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
    named = {"kind": kind, "mode": "train", "tokens": tokens, "backend": "torch", "over": over}
    return {**named, **span, **exact, "bar": bar, "met": met}


METRICS = {
    "rows": [row("torch", 2048, 0.5), row("torch", 4096, 1.0), row(HOSTILE, 4096, 30.0)],
    "ratios": [
        ratio("floor", 100.0, 4096, None),
        ratio("faster", 30.0, 4096, 25.0, HOSTILE),
        ratio("flat", 1.25, None, 1.15),
        ratio("fit", 0.034, None, 0.05),
    ],
    "copy_bandwidth": {"median": 1e10, "q1": 9e9, "q3": 1.1e10},
    "table_bytes": 536_870_912,
}


def line(**fields: Any) -> ResultLine:
    parameters = {k: v for k, v in ENTRY.items() if k != "measure"} | {"model": {}, "device": "cpu", "threads": 2}
    known = {"case": "0" * 12, "layout": HOSTILE, "measure": "op_speed", "parameters": parameters, "seed": 0}
    known |= {"status": "ok", "seconds": 100.0, "metrics": METRICS, "backends": {"fwpkm": ["reference", "torch"]}}
    return ResultLine(**{**known, **fields})


@pytest.fixture
def make_op_run(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: ResultLine) -> Path:
        suite = {"layouts": {HOSTILE: "fwpkm"}, "measures": [ENTRY], "seeds": [0]}
        return write_run(tmp_path / "run", list(lines), **suite)

    return make


def test_every_bar_has_a_verdict(make_op_run: Callable[..., Path]) -> None:
    faster, flat, fit = findings(read_run(make_op_run(line())))
    assert faster.topic.startswith("Bar, training step of 4,096 tokens: times as fast, torch against </script>")
    assert (faster.winner, faster.value) == ("met", "30 [27, 33]")
    assert faster.sentence.endswith("the bar is at least 25.")
    assert flat.topic == "Bar, training step of 2,048 to 4,096 tokens: greatest by least seconds a token, torch"
    assert (flat.winner, flat.value) == ("not met", "1.25 [1.12, 1.38]")
    assert (fit.winner, fit.value) == ("met", "3.4 %") and "at most 5.0 %" in fit.sentence


def test_bars_without_numbers_are_named(make_op_run: Callable[..., Path]) -> None:
    (found,) = findings(read_run(make_op_run(line(status="out_of_memory", metrics=None, error="12 GB"))))
    assert found.winner == "not measured" and found.topic == "Bars, training step"
    assert found.sentence.endswith("out of memory, so 1 of the suite's bars have no number.")


def test_tables_and_summary_hold_every_number(make_op_run: Callable[..., Path]) -> None:
    run = read_run(make_op_run(line()))
    assert not len(run["missing"]) and list(run["op_speed"]["seconds"]) == [0.5, 1.0, 30.0]
    tables = {t.name: t for part in parts(run) for t in part.tables}
    ratios = tables["op_speed-ratios"].rows
    assert [r[3:] for r in ratios[:2]] == [["at least 25", "met"], ["at most 1.15", "not met"]]
    assert ratios[-1][2:] == ["100 [90, 110]", "–", "–"]
    speed = tables["op_speed"]
    assert speed.rows[1][4:9] == ["1 s [900 ms, 1.10 s]", "244 µs", "4.10 MB", "100 MB", "100"]
    assert "10.0 GB/s" in speed.note
    numbers = summary(run)
    assert len(numbers) == 3 * 3 + 4
    faster = numbers.query("quantity == 'faster'").iloc[0]
    assert (faster["value"], faster["length"], faster["unit"]) == (30.0, 4096, "ratio")
    assert faster["backends"] == f"torch over {HOSTILE}"


def test_overhead_stands_beside_it_without_a_floor(make_op_run: Callable[..., Path]) -> None:
    rows = [
        {k: v for k, v in row(name, 4096, s).items() if "floor" not in k} for name, s in (("with", 3), ("without", 2))
    ]
    over = {**ratio("overhead", 1.5, 4096, 1.5, "without"), "backend": "with"}
    rows[0]["ran"] = {"fwpkm": ["triton"], "recurrence": ["chunked", "fla"]}
    compiled = {"compile_seconds": 12.5, "graph_breaks": 3}
    found = line(measure="overhead", metrics={"rows": rows, "ratios": [over], **compiled})
    run = read_run(make_op_run(found))
    (verdict,) = findings(run)
    assert verdict.winner == "met" and "times the seconds of the same model without" in verdict.topic
    (table,) = [t for part in parts(run) for t in part.tables if t.name == "overhead"]
    assert table.rows[0][7:9] == ["–", "–"] and "Floor:" not in table.note
    assert [row[-1] for row in table.rows] == ["fwpkm: triton; recurrence: chunked, fla", "–"]  # which were measured
    assert "Before, torch.compile took at most 12.5 s; graph breaks: 3 at most." in table.note
    assert set(summary(run)["quantity"]) == {"seconds", "peak_bytes", "overhead"}


def test_cost_is_drawn_against_length_where_a_case_has_several(make_op_run: Callable[..., Path]) -> None:
    (part,) = [p for p in parts(read_run(make_op_run(line()))) if p.name == "op_speed"]
    (figure,) = part.figures
    assert figure.name == "op_speed-lengths"
    (data,) = figure.spec["datasets"].values()
    # the other backend has been timed at one length only
    assert [(d["layout"], d["length"]) for d in data] == [(f"{HOSTILE}, torch", n) for n in (2048, 4096)]
    assert [d["cost"] for d in data] == pytest.approx([1e6 * 0.5 / 2048, 1e6 * 1.0 / 4096])
    assert data[0]["low"] == pytest.approx(0.9 * data[0]["cost"]) and data[0]["panel"] == "Training step"


def test_a_single_length_is_not_drawn(make_op_run: Callable[..., Path]) -> None:
    single = {**METRICS, "rows": METRICS["rows"][1:]}
    assert not [f for part in parts(read_run(make_op_run(line(metrics=single)))) for f in part.figures]


def test_the_page_escapes_it_all_and_other_reports_have_no_such_section(
    make_op_run: Callable[..., Path], made_up_report: Path
) -> None:
    page = write_report(make_op_run(line()))
    text, markdown = (page.parent / name for name in ("report.html", "report.md"))
    assert 'id="op_speed"' in text.read_text() and "not met" in text.read_text()
    assert "<script>alert" not in text.read_text() and "<script>alert" not in markdown.read_text()
    assert "allocator <hooks>" not in text.read_text() and "## Op speed" in markdown.read_text()
    assert 'id="op_speed"' not in made_up_report.read_text()
    with open(page.parent / "tables" / "op_speed_ratios.csv", newline="") as file:
        assert [r["met"] for r in csv.DictReader(file)] == ["", "True", "False", "True"]
    assert len(pd.read_csv(page.parent / "tables" / "op_speed.csv")) == 3


def test_a_case_that_failed_leaves_a_section_that_says_so(make_op_run: Callable[..., Path]) -> None:
    page = write_report(make_op_run(line(status="timeout", metrics=None, error="late")))
    assert "The suite asks for this, but no case of it has a result." in page.read_text()
