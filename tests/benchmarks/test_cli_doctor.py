"""The command doctor, on an examination that is already made; and that a run on a GPU is examined first."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixerzoo.benchmarks import cli, cli_doctor, device, runner
from mixerzoo.benchmarks.runs import Results, Run
from mixerzoo.benchmarks.suite import load_suite
from mixerzoo.mixers import doctor
from mixerzoo.mixers.doctor import Diagnosis
from mixerzoo.mixers.ops.verdicts import Error, Verdict
from rich.console import Console

MACHINE = {"device": "Pretend 5000", "torch": "2.13", "triton": None}


def verdict(backend: str, **changes: Any) -> Verdict:
    found = Verdict(
        op="recurrence", backend=backend, variant="beta", dtype="bfloat16", width=64, source="", outcome="right",
        seconds={"short": {"forward": 2.0 if backend == "chunked" else 1.0}},
    )  # fmt: skip
    return found.model_copy(update=changes)


RIGHT = verdict("fla", backward="right", errors={"forward": Error(error=1e-3, limit=5e-3)})
WRONG = verdict(
    "fla", dtype="float32", outcome="wrong", detail="forward inf, at most 2.0e-05 | [odd]", seconds={},
    errors={"forward": Error(error=float("inf"), limit=2e-5)},
)  # fmt: skip


@pytest.fixture
def diagnosis(monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    """What every examination finds; `asked` in its machine says what it was asked for."""
    monkeypatch.setattr(device, "usable_here", lambda name: True)
    found = Diagnosis("cuda:0", dict(MACHINE), [RIGHT, verdict("chunked")], proving={("recurrence", "fla")})
    found.unavailable = [("attention", "flex", "it is not installed")]

    class Pretended:
        def __init__(self, ops: list[Any], place: torch.device, **options: Any) -> None:
            found.machine["asked"] = f"{sorted(op.name for op in ops)} {place} {options}"
            self.device, self.open = place, [0]

        def run(self, listen: Callable[..., None]) -> Diagnosis:
            for done, v in enumerate(found.proven, 1):
                listen("prove", done, len(found.proven), v)
            return found

    monkeypatch.setattr(doctor, "Examination", Pretended)
    return found


@pytest.fixture
def mixerzoo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "220")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_the_table_says_what_is_right_and_how_much_faster(mixerzoo: Any, diagnosis: Diagnosis) -> None:
    code, out, err = mixerzoo("doctor", "--device", "cpu", "--mixers", "deltanet", "--dtype", "bfloat16")
    assert code == 0
    for said in (
        "fla",
        "beta",
        "bfloat16",
        "1.0e-03 / 5.0e-03",
        "2x",
        "attention: flex cannot run: it is not installed",
    ):
        assert said in out
    assert "recurrence: of 1 kinds of calls that were timed, fastest is fla in 1" in out
    assert "1 cases to prove on cpu" in err and "prove recurrence fla, 1 of 1 cases done" in err
    asked = diagnosis.machine["asked"] or ""
    assert "['recurrence', 'short_convolution'] cpu" in asked  # what deltanet runs, though its card names one
    assert "'dtypes': ['bfloat16']" in asked and "'again': False" in asked


def test_what_is_wrong_is_told_at_once_and_is_an_error(mixerzoo: Any, diagnosis: Diagnosis) -> None:
    diagnosis.verdicts.append(WRONG)
    code, out, err = mixerzoo("doctor", "--device", "cpu", "--mixers", "gla")
    assert code == 1
    assert "recurrence fla beta float32 64: wrong: forward inf, at most 2.0e-05 | [odd]" in err
    assert "not finite" in out and "[odd]" in out


def test_markdown_is_a_table_with_a_head(mixerzoo: Any, diagnosis: Diagnosis) -> None:
    diagnosis.verdicts.append(WRONG)
    _, out, _ = mixerzoo("doctor", "--device", "cpu", "--mixers", "gla", "--markdown")
    lines = out.splitlines()
    assert lines[0].startswith("`mixerzoo doctor` on cuda:0: device Pretend 5000, torch 2.13, asked")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {14}


def test_json_is_strict_and_complete(mixerzoo: Any, diagnosis: Diagnosis) -> None:
    diagnosis.verdicts.append(WRONG)
    _, out, _ = mixerzoo("doctor", "--device", "cpu", "--mixers", "gla", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert [row["outcome"] for row in found["rows"]] == ["right", "wrong"]
    assert [v["backend"] for v in found["verdicts"]] == ["fla", "chunked", "fla"]
    assert found["machine"]["device"] == "Pretend 5000"


def test_a_terminal_gets_a_bar(diagnosis: Diagnosis) -> None:
    screen = io.StringIO()
    cli_doctor.examine(doctor.Examination([], torch.device("cpu")), Console(file=screen, force_terminal=True))
    assert "prove recurrence fla" in screen.getvalue()


def test_mistakes_are_told(mixerzoo: Any) -> None:
    code, _, err = mixerzoo("doctor", "--mixers", "nonesuch*", "--device", "cpu")
    assert (code, err.strip()) == (2, "no mixer matches 'nonesuch*'; `mixerzoo list` shows all")
    code, _, err = mixerzoo("doctor", "--mixers", "gla", "--dtype", "float8", "--device", "cpu")
    assert code == 2 and "unknown dtype float8; give some of bfloat16, float32, float16" in err


SUITE = """
name: tiny
model: {d_model: 16, mixer_defaults: {linear_attention: {heads: 2}}}
layouts: {lin: linear_attention, swa: sliding_window_attention}
measures:
  - {measure: speed, modes: [forward], lengths: [16], rounds: 3, budget_seconds: 0, layouts: [lin]}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    return tmp_path / "tiny.yaml"


def test_a_run_on_a_gpu_begins_with_the_doctor(diagnosis: Diagnosis, suite: Path) -> None:
    said = cli_doctor.before_run(load_suite(str(suite)), "cuda:1", True, Console(file=io.StringIO()))
    assert [row["outcome"] for row in said["rows"]] == ["right"]
    assert said["fastest"] == {"recurrence": {"fla": 1}}
    # of the layouts that are measured, in the precision of a GPU
    assert diagnosis.machine["asked"] == "['recurrence'] cuda:1 {'dtypes': ['bfloat16', 'float32']}"
    assert cli_doctor.before_run(load_suite(str(suite)), "cuda", False, Console()) == {"skipped": "--no-doctor"}


def test_what_the_doctor_said_is_handed_to_the_run_and_kept(
    mixerzoo: Any, diagnosis: Diagnosis, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    none = Results(Run(tmp_path / "run"), [])
    monkeypatch.setattr(runner, "execute", lambda *a, notes, **options: seen.append(notes["doctor"]) or none)
    arguments = ("run", str(suite), "--device", "cpu", "--no-estimate", "--out", str(tmp_path / "run"))
    mixerzoo(*arguments)
    monkeypatch.setattr(device, "choose_device", lambda name, only, **options: "cuda")
    mixerzoo(*arguments, "--no-doctor")
    mixerzoo(*arguments)
    assert seen[:2] == [
        {"skipped": "the run is not on a GPU: kernels for one have nothing to prove"},
        {"skipped": "--no-doctor"},
    ]
    assert seen[2]["machine"]["device"] == "Pretend 5000"
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    runner._write_environment(run, "cpu", 1, {}, {"doctor": seen[2]})
    assert run.environment()["doctor"] == seen[2]
