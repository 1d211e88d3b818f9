"""The micro benchmarks: what they time exists for every op and can be run, and sessions become a history."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from mixerzoo.benchmarks.micro.problems import OWN, VARIANTS, problems_of
from mixerzoo.benchmarks.micro_history import HISTORY, HistoryError, append, read_records, state_of_source
from mixerzoo.mixers.doctor.cases import bundled_ops, cast
from mixerzoo.mixers.ops.dispatch import Backend, Op

CPU = torch.device("cpu")
TOKENS = 40
OPS = bundled_ops()


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_timed_on_something_that_runs_on_all_its_backends(name: str) -> None:
    op = OPS[name]
    for problem in problems_of(op):
        drawn = problem.inputs(1, TOKENS, torch.Generator().manual_seed(0))
        for backend in op.available(CPU):
            x = cast(problem, drawn, torch.float32, CPU)
            wanted = [t.requires_grad_() for t in x.values() if t.is_floating_point()]
            output, _ = problem.run(x, None, backend)
            gradients = torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
            assert output.shape[:2] == (1, TOKENS)
            assert output.isfinite().all()
            assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_a_new_op_without_a_micro_benchmark_is_told_where_it_belongs() -> None:
    with pytest.raises(LookupError, match=r"op planted has no micro benchmark.*problems\.py"):
        problems_of(Op("somewhere.planted", Backend("reference", "reference:planted")))


def test_nothing_is_kept_for_an_op_that_is_gone() -> None:
    assert set(OWN) == {name for name, op in OPS.items() if op.problems is None}
    assert set(VARIANTS) <= set(OPS)


def session(path: Path, *names: str, median: float = 0.02, **shared: Any) -> Path:
    """A session as pytest-benchmark writes it, with what `benchmarks/micro` adds."""
    about = {
        "machine": {"cpu": "CPU", "cores": 2, "threads": 2, "gpu": None},
        "torch": "2.13.0",
        "commit": "a" * 40,
        "dirty": False,
        "committed": "2026-01-01T00:00:00+00:00",
        **shared,
    }
    extra = {"op": "scan", "variant": "", "backend": "chunked", "direction": "train", "length": 256, "load": 0.5}
    extra |= {"dtype": "float32", "reference": {"median": 0.01, "q1": 0.009, "q3": 0.011}}
    stats = {"median": median, "q1": median / 2, "q3": median * 2, "rounds": 7, "mean": 1.0, "data": [1.0] * 7}
    benchmarks = [{"group": "scan, 256 tokens", "name": n, "extra_info": extra, "stats": stats} for n in names]
    said = {"machine_info": {"node": "host", "mixerzoo": about}, "benchmarks": benchmarks}
    path.write_text(json.dumps({**said, "datetime": "2026-01-02T03:04:05.678901", "version": "4.0.0"}))
    return path


def test_a_session_is_appended_once_for_each_commit_and_machine(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    first = append(session(tmp_path / "s.json", "one", "two"), history)
    assert [r.name for r in first] == ["one", "two"]
    assert read_records(history) == first
    assert first[0].time == "2026-01-02T03:04:05+00:00"
    assert (first[0].median, first[0].q1, first[0].q3, first[0].rounds) == (0.02, 0.01, 0.04, 7)

    append(session(tmp_path / "s.json", "two", median=0.03), history)
    assert [(r.name, r.median) for r in read_records(history)] == [("one", 0.02), ("two", 0.03)]

    append(session(tmp_path / "s.json", "two", commit="b" * 40), history)
    append(session(tmp_path / "s.json", "two", dirty=True), history)
    other = {"cpu": "CPU", "cores": 2, "threads": 1, "gpu": None}
    append(session(tmp_path / "s.json", "two", machine=other), history)
    assert len(read_records(history)) == 5


def test_what_is_no_session_changes_nothing(tmp_path: Path) -> None:
    history, broken = tmp_path / "history.jsonl", tmp_path / "s.json"
    append(session(broken, "one"), history)
    before = history.read_bytes()
    for text in ("", "{}", '{"machine_info": {}}', "[1]", broken.read_text()[:-20]):
        broken.write_text(text)
        with pytest.raises(HistoryError, match="run it again"):
            append(broken, history)
    with pytest.raises(HistoryError, match="holds no benchmark"):
        append(session(broken), history)
    with pytest.raises(HistoryError, match="no finished session"):
        append(session(broken, "one", median=float("nan")), history)
    assert history.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, r"history\.jsonl:1 has schema version 99.*update"),
        ({"median": -1}, "no record of a micro benchmark: median"),
        ({"surprise": 1}, "surprise"),
        ({"op": "../../scan"}, "op: String should match pattern"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    history = tmp_path / "history.jsonl"
    append(session(tmp_path / "s.json", "one"), history)
    history.write_text(json.dumps({**json.loads(history.read_text()), **change}) + "\n")
    with pytest.raises(HistoryError, match=message):
        read_records(history)
    history.write_text("{torn")
    with pytest.raises(HistoryError, match=r":1 is not JSON"):
        append(session(tmp_path / "s.json", "one"), history)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_appends_only_after_a_clean_end() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "micro"], cwd=root, capture_output=True, text=True, check=True
    )
    *_, measure, keep = done.stdout.splitlines()  # a rule stops at the first command that fails
    session = measure.partition("--benchmark-json=")[2].split()[0]
    assert keep.endswith(f"-m mixerzoo.benchmarks.micro_history {session} {HISTORY.relative_to(root)}")


def test_the_source_is_that_of_the_checkout() -> None:
    found = state_of_source()
    assert set(found) == {"commit", "dirty", "committed"}
    assert (found["commit"] is None) == (found["committed"] is None)
