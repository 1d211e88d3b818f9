"""The history of the micro benchmarks as charts and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.micro_history import HISTORY, HistoryError, Machine, MicroRecord
from mixerzoo.reports.micro import machine_name, micro_figures, micro_tables, read_history

HOSTILE = "<script>alert(1)</script>"


def record(letter: str, day: int, median: float, **fields: Any) -> MicroRecord:
    said = {
        "commit": letter * 40,
        "dirty": False,
        "committed": f"2026-01-{day:02}T00:00:00+00:00",
        "time": f"2026-02-{day:02}T00:00:00+00:00",
        "machine": {"cpu": "CPU", "cores": 2, "threads": 1, "gpu": None},
        "torch": "2.13.0",
        "group": "scan, 256 tokens",
        "name": "one",
        "op": "scan",
        "variant": "",
        "backend": "chunked",
        "direction": "train",
        "length": 256,
        "dtype": "float32",
        "rounds": 7,
        "median": median,
        "q1": 0.95 * median,
        "q3": 1.05 * median,
        "reference": {"median": 0.01, "q1": 0.0099, "q3": 0.0101},
        "load": None,
    }
    return MicroRecord.model_validate({**said, **fields})


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(*records: MicroRecord) -> Path:
        path = tmp_path / "history.jsonl"
        path.write_text("".join(json.dumps(r.model_dump()) + "\n" for r in records))
        return path

    return to_file


def verdicts(path: Path) -> dict[str, list[str]]:
    (table,) = micro_tables(read_history(path))
    return {row[0]: row for row in table.rows}


def test_the_newest_is_held_against_the_commit_before(write: Any) -> None:
    cases = {"same": (0.02, 0.0205), "slow": (0.02, 0.03), "fast": (0.02, 0.01)}
    before = [record("a", 1, old, name=n, op=n) for n, (old, _) in cases.items()]
    after = [record("b", 2, new, name=n, op=n) for n, (_, new) in cases.items()]
    first = record("b", 2, 0.02, name="new", op="new")
    oldest = record("c", 1, 9.0, name="slow", op="slow", committed="2025-01-01T00:00:00+00:00")
    found = verdicts(write(*after, first, oldest, *before))  # whatever order they were measured in
    assert {op: row[-1] for op, row in found.items()} == {
        "slow": "slower",
        "fast": "faster",
        "same": "cannot tell",
        "new": "the first",
    }
    assert found["slow"][4:8] == ["b" * 9, "30.0 ms [28.5 ms, 31.5 ms]", "3", "1.5 [1.33, 1.69]"]
    assert list(found) == ["slow", "fast", "same", "new"]


def test_a_busier_machine_is_no_slower_op(write: Any) -> None:
    slow = {"reference": {"median": 0.02, "q1": 0.0198, "q3": 0.0202}, "load": 9.5}
    found = verdicts(write(record("a", 1, 0.02), record("b", 2, 0.04, **slow)))
    assert found["scan"][-2:] == ["1 [0.887, 1.13]", "cannot tell"]


def test_machines_are_kept_apart(write: Any) -> None:
    other = {"cpu": HOSTILE, "cores": 1, "threads": 4, "gpu": "GPU"}
    history = read_history(write(record("a", 1, 0.02), record("b", 2, 0.04, machine=other), record("c", 3, 0.02)))
    tables, figures = micro_tables(history), micro_figures(history)
    assert [t.rows[0][-1] for t in tables] == ["cannot tell", "the first"]
    assert [t.name for t in tables] == ["micro", "micro-2"]
    assert [f.name for f in figures] == ["micro-scan", "micro-scan-2"]
    assert HOSTILE in tables[1].title
    assert "<script" not in figures[1].spec_json
    assert machine_name(Machine(**other)) == f"GPU, {HOSTILE}, 1 core, 4 threads"


def test_a_chart_has_the_numbers_of_the_history(write: Any) -> None:
    (figure,) = micro_figures(read_history(write(record("a", 1, 0.02, load=0.5), record("b", 2, 0.03, dirty=True))))
    (values,) = figure.spec["datasets"].values()
    shown = {(v["panel"], v["point"]): (v["value"], v["load"]) for v in values}
    assert shown == {
        ("256 tokens, milliseconds", "a" * 9): (20.0, "0.50"),
        ("256 tokens, milliseconds", "b" * 9 + "+"): (30.0, "not known"),
        ("256 tokens, times the reference", "a" * 9): (2.0, "0.50"),
        ("256 tokens, times the reference", "b" * 9 + "+"): (3.0, "not known"),
    }
    assert "bbbbbbbbb+: chunked, train, 256 tokens: 30.0 ms, 3 times" in figure.alt


def test_one_point_is_drawn(write: Any) -> None:
    (figure,) = micro_figures(read_history(write(record("a", 1, 0.02, commit=None, committed=None, dirty=None))))
    assert figure.svg.startswith("<svg")
    assert "no commit" in figure.svg


def test_no_history_is_nothing_to_draw(tmp_path: Path, write: Any) -> None:
    for path in (tmp_path / "none.jsonl", write()):
        history = read_history(path)
        assert not len(history)
        assert micro_figures(history) == micro_tables(history) == []


def test_a_damaged_history_is_named(write: Any) -> None:
    path = write(record("a", 1, 0.02))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(HistoryError, match=r"history\.jsonl:1 is not JSON"):
        read_history(path)


def test_the_history_of_this_repository_is_drawn_for_every_op() -> None:
    history = read_history(HISTORY)
    machines = history["machine"].nunique()
    assert {figure.title.removeprefix("Micro benchmarks: ") for figure in micro_figures(history)} == set(history["op"])
    assert [len(table.rows) > 0 for table in micro_tables(history)] == [True] * machines
