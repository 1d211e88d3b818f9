"""Files of other tools become runs that are marked foreign, or are refused with what was expected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks import cli
from mixerzoo.benchmarks.foreign import FORMATS, ForeignError, import_file, read_foreign
from mixerzoo.benchmarks.runs import Run, RunError
from mixerzoo.benchmarks.schema import SCHEMA_VERSION

from .foreign_files import CSV, FLA, LM_EVAL, PRINTED, text

HOSTILE = '</script><script>alert("label")</script> [bold]*|`\n'
BENCHMARK = f"""
import pytest

@pytest.mark.benchmark(group="sums")
@pytest.mark.parametrize("n", [10, 1000], ids=["few", {HOSTILE!r}])
def test_sum(benchmark, n):
    benchmark.pedantic(sum, (range(n),), rounds=5)
"""

MADE_NOW = {"schema_version": SCHEMA_VERSION, "cards": {}, "layout_mixers": {}}


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pytest-benchmark writes here."""
    folder = tmp_path_factory.mktemp("timed")
    (folder / "test_sums.py").write_text(BENCHMARK)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=sums.json"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}  # not a worker of ours
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=alone)
    return folder / "sums.json"


def metrics(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in (line.metrics or {}).items() if v is not None} for line in run.results()]


def test_pytest_benchmark(timed: Path, tmp_path: Path) -> None:
    run = import_file(timed, tmp_path / "run")
    said = json.loads(timed.read_text())
    first, second = said["benchmarks"]
    assert metrics(run)[0] == {
        "quantity": "median time",
        "unit": "s",
        "value": first["stats"]["median"],
        "low": first["stats"]["q1"],
        "high": first["stats"]["q3"],
        "interval": "quartiles of the rounds",
        "count": 5,
        "task": "sums",
        "better": "less",
    }
    assert [line.layout for line in run.results()] == [first["name"], second["name"]] == list(run.suite()["layouts"])
    assert "<script>" in second["name"]
    environment = run.environment()
    assert environment["foreign"] == {
        "tool": "pytest-benchmark",
        "version": said["version"],
        "file": "sums.json",
        "sha256": environment["foreign"]["sha256"],
        "imported": environment["foreign"]["imported"],
    }
    assert environment["machine"]["host"] == said["machine_info"]["node"]
    assert environment["started"] == said["datetime"]


def imported(tmp_path: Path, content: bytes, name: str = "file.json") -> Run:
    (tmp_path / name).write_bytes(content)
    return import_file(tmp_path / name, tmp_path / "run")


def test_lm_evaluation_harness(tmp_path: Path) -> None:
    run = imported(tmp_path, text(LM_EVAL))
    found = metrics(run)
    assert found[0] == {
        "quantity": "perplexity",
        "unit": "",
        "value": 26.02,
        "low": pytest.approx(25.08),
        "high": pytest.approx(26.96),
        "interval": "one standard error to each side",
        "count": 5153,
        "task": "lambada_openai",
        "better": "less",
    }
    assert [(m["task"], m["quantity"], m["value"]) for m in found[1:]] == [
        ("lambada_openai", "acc", 0.382),
        ("gsm8k", "exact_match", 0.02),
        ("gsm8k", "exact_match", 0.03),
        ("all", "acc", 0.2),
    ]
    assert "low" not in found[2] and "interval" not in found[2]
    assert [m.get("count") for m in found] == [5153, 5153, 100, 100, None]
    settings = [line.parameters["settings"] for line in run.results()]
    assert settings[2] == {"filter": "strict-match", "shots": 5, "version": 3.0}
    assert settings[4] == {"filter": "none", "group": True}
    assert {line.layout for line in run.results()} == {"fla-hub/gla-340M"}
    environment = run.environment()
    assert environment.pop("foreign")["version"] == "0.4.9"
    assert environment == {
        **MADE_NOW,
        "started": "2026-01-02T03:04:05+00:00",
        "device": "cuda:0",
        "machine": {"cpu": "Intel Xeon", "os": "Ubuntu 22.04 (x86_64)"},
        "gpu": {"name": "NVIDIA H200"},
        "python": "3.11.9",
        "packages": {"torch": "2.9.0+cu129", "transformers": "5.0.0"},
    }


def test_fla_ops(tmp_path: Path) -> None:
    run = imported(tmp_path, text(FLA))
    assert metrics(run)[1] == {
        "quantity": "median time",
        "unit": "ms",
        "value": 4.818,
        "low": 4.8,
        "high": 4.9,
        "interval": "20th to 80th percentile of the rounds",
        "mode": "fwdbwd",
        "length": 8192,
        "better": "less",
    }
    assert [line.layout for line in run.results()] == ["chunk_gla", "chunk_gla", "fused_attnres[gluon]"]
    what = {"quantity": "median time", "unit": "ms", "task": None, "mode": "fwd", "length": 2048, "better": "less"}
    assert run.results()[2].parameters == {**what, "settings": {"B": 1, "H": 16, "D": 128, "L": 8}}
    environment = run.environment()
    assert environment["foreign"]["tool"] == "flash-linear-attention"
    assert environment["gpu"] == {"name": "NVIDIA GB200"}
    assert environment["packages"] == {"torch": "2.9.0+cu129", "triton": "3.5.0"}


@pytest.mark.parametrize(("content", "task"), [(CSV, None), (PRINTED, "Performance")])
def test_tables_of_triton(tmp_path: Path, content: str, task: str | None) -> None:
    run = imported(tmp_path, content.encode(), "Performance.csv")
    lines = run.results()
    assert [line.layout for line in lines] == ["naive", "fused", "naive", "fused"]
    assert [line.parameters["length"] for line in lines] == [128, 128, 256, 256]
    assert all(line.parameters["settings"] == {"B": 16} for line in lines)
    first = {"quantity": "Execution Time", "unit": "ms", "value": 0.01536, "length": 128}
    assert metrics(run)[0] == {**first, **({"task": task} if task else {})}
    if task is None:  # the cell that triton left empty
        assert (lines[3].status, lines[3].metrics) == ("not_finite", None)
        assert lines[3].error == "the file has no finite number for Execution Time"
    assert set(run.environment()) == {"foreign", *MADE_NOW}  # such a table says nothing of a machine


def test_equal_rows_of_a_file_stay_apart(tmp_path: Path) -> None:
    run = imported(tmp_path, text(FLA, results=[FLA["results"][0]] * 3))
    assert len(run.results()) == 3


ROW = FLA["results"][0]
WRONG: dict[str, tuple[bytes, str]] = {
    "json of something else": (b'{"a": 1}', "no format that is known: expected pytest-benchmark: the JSON"),
    "a list": (b"[1, 2]", "no format that is known"),
    "text": (b"hello\nworld", "lm-eval: a results_"),
    "nothing": (b"", "no format that is known"),
    "a table without times": (b"T,naive\n1,2\n", "columns such as `fused "),
    "bytes": (b"\xff\xfe\x00", "is no text"),
    "torn json": (text(FLA)[:-40], "is damaged JSON"),
    "deep json": (b"[" * 100_000, "is damaged JSON"),
    "half a character": (text(LM_EVAL, model_name="\ud800"), "no Unicode"),
    "no benchmark": (text({"machine_info": {}, "benchmarks": []}), "holds no result"),
    "no times": (text({"machine_info": {}, "benchmarks": [{"name": "a"}]}), "benchmarks.0.stats: Field required"),
    "no metric": (text(LM_EVAL, results={"lambada": {"acc": 0.5, "acc_stderr": 0.1}}), "holds no result"),
    "a metric in words": (text(LM_EVAL, results={"t": {"acc,none": "good"}}), r"results.t.acc,none is 'good' and no"),
    "no number of samples": (text(LM_EVAL, **{"n-samples": {"gsm8k": 3}}), "n-samples.gsm8k: Input should be"),
    "a row without a time": (text(FLA, results=[{**ROW, "median_ms": None}]), "results.0.median_ms: Input should be"),
    "a number without end": (text(LM_EVAL, results={"t": {"acc,none": 10**400}}), "lm-eval, but int"),
    "a table with text below": ((CSV + "Saved plot: a.png\n").encode(), "its column 'B' holds something other"),
    "a printed table with text below": ((PRINTED + "Saved plot a.png\n").encode(), "holds something other"),
    "a table with a word": (CSV.replace("0.025600", "slow").encode(), "holds something other than numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_such_file_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ForeignError, match=message):
        import_file(tmp_path / "file", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_that_is_asked_for_is_the_only_one_tried(name: str) -> None:
    content = {"pytest-benchmark": text(FLA), "lm-eval": text(FLA), "fla": text(LM_EVAL)}[name]
    with pytest.raises(ForeignError, match=f"file is not of the format {name}: expected "):
        read_foreign(content, "file", name)


def test_a_damaged_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("mixerzoo.benchmarks.runs.RunLock.append", full)
    with pytest.raises(OSError, match="full"):
        imported(tmp_path, text(FLA))
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    run = imported(tmp_path, text(FLA))
    before = run.results_path.read_bytes()
    with pytest.raises(RunError, match="is there already; choose another folder"):
        imported(tmp_path, text(LM_EVAL))
    assert run.results_path.read_bytes() == before


def test_settings_that_are_no_json_numbers_are_kept_as_text(tmp_path: Path) -> None:
    run = imported(tmp_path, text(FLA, results=[{**ROW, "scale": float("nan")}]))
    assert run.results()[0].parameters["settings"]["scale"] == "NaN"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Performance [bold].csv").write_text(CSV)
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "Performance [bold].csv"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "4 values, 1 of them not finite, of triton.testing.Benchmark" in said
    assert "runs/Performance [bold]" in said and "marked foreign" in said
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "Performance [bold].csv", "--format", "lm-eval", "--out", "other"])
    assert ended.value.code == 2
    assert "is not of the format lm-eval" in capsys.readouterr().err
    assert not Path("other").exists()
