"""Run folders with damaged files: every command that reads one shows what is there, or says what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.benchmarks.cli import main
from mixerzoo.benchmarks.foreign import import_file
from mixerzoo.benchmarks.runs import Run

from .fuzzing import YAML_VALUES, as_json, ends_well, fuzz, mutated, mutated_bytes

PUBLISHED = Path(__file__, "../../../reports/published").resolve()
NAMES = ("suite.yaml", "environment.json", "plan.json", "results.jsonl")
CODES = (0, 1, 2, 3)


def mixerzoo(*arguments: str | Path) -> int:
    """Run a command line in this process; returns its exit code. Any end but a documented one fails."""
    written = io.BytesIO()
    said = io.TextIOWrapper(written, "utf-8", write_through=True)  # strict, as a terminal is
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        ends_well(lambda: main(list(map(str, arguments))))
    text = written.getvalue().decode()
    assert end.value.code in CODES, (arguments, text)
    assert "Traceback (most recent" not in text
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, bytes]], Path, Path]:
    """The files of small runs, a folder for a damaged one, and a sound run to compare it with."""
    folder = tmp_path_factory.mktemp("runs")
    sound = folder / "sound"
    shutil.copytree(PUBLISHED / "decode-speed", sound, ignore=shutil.ignore_patterns("figures", "tables", "report*"))
    files = []
    for name in ("decode-speed", "fwpkm-speed", "recall-memory"):
        found = {n: (PUBLISHED / name / n).read_bytes() for n in NAMES}
        lines = found["results.jsonl"].splitlines(keepends=True)
        files.append({**found, "results.jsonl": b"".join(lines[:: max(1, len(lines) // 12)])})
    return files, folder / "damaged", sound


def damaged(name: str, content: bytes, rng: random.Random) -> bytes:
    """A file of a run after an accident, or after somebody edited it."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    if name == "suite.yaml":
        data = mutated(yaml.safe_load(content), rng, YAML_VALUES)
        return yaml.safe_dump(data, sort_keys=False).encode(errors="replace")
    if name == "results.jsonl":
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        line = {k: v for k, v in json.loads(lines[at]).items() if k != "sha256"}
        lines[at] = as_json(mutated(line, rng))
        return b"\n".join(lines) + b"\n"
    return as_json(mutated(json.loads(content), rng))


COMMANDS: list[Callable[[Path, Path], list[Any]]] = [
    lambda run, sound: ["status", run],
    lambda run, sound: ["status", run, "--json"],
    lambda run, sound: ["compare", sound, run],
    lambda run, sound: ["compare", run, sound, "--fail-on-regression", "5%"],
    lambda run, sound: ["export", run, "--format", "json"],
    lambda run, sound: ["export", run, "--format", "csv"],
]


def damage(runs: tuple[list[dict[str, bytes]], Path, Path], rng: random.Random) -> tuple[Path, Path]:
    files, folder, sound = runs
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    victim = rng.choice(NAMES)
    for name, content in rng.choice(files).items():
        if name != victim or rng.random() < 0.95:
            (folder / name).write_bytes(damaged(name, content, rng) if name == victim else content)
    return folder, sound


@fuzz(60)
@given(st.randoms(use_true_random=False))
def test_a_damaged_run_is_shown_or_refused(runs: Any, rng: random.Random) -> None:
    folder, sound = damage(runs, rng)
    mixerzoo(*rng.choice(COMMANDS)(folder, sound))


@fuzz(8)
@given(st.randoms(use_true_random=False))
def test_a_damaged_run_is_reported_or_refused(runs: Any, rng: random.Random) -> None:
    folder, _ = damage(runs, rng)
    mixerzoo("report", folder)


@fuzz(150)
@given(st.randoms(use_true_random=False))
def test_a_damaged_run_is_read_or_refused(runs: Any, rng: random.Random) -> None:
    folder, _ = damage(runs, rng)
    run = Run(folder)
    for read in (run.suite, run.environment, run.plan, lambda: list(run.results())):
        ends_well(read)


def test_sound_runs_are_reported_and_compared(runs: Any) -> None:
    files, folder, sound = runs
    for found in files:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in found.items():
            (folder / name).write_bytes(content)
        assert mixerzoo("report", folder) == mixerzoo("compare", sound, folder) == 0


def test_an_edited_run_is_a_mistake_with_a_message(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON, but a text where a table belongs: no checksum tells, since older runs and environments have none."""
    files, folder, _ = runs
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files[0].items():
        (folder / name).write_bytes(content)
    environment = json.loads((folder / "environment.json").read_bytes())
    (folder / "environment.json").write_text(json.dumps({**environment, "source": "x", "machine": [1]}))
    with pytest.raises(SystemExit) as end:
        main(["compare", str(folder), str(folder)])
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "is not what mixerzoo writes there" in said and "--traceback" in said
    with pytest.raises(ValueError, match="is not what mixerzoo writes there") as error:
        main(["--traceback", "compare", str(folder), str(folder)])
    assert error.value.__cause__ is not None


FOREIGN = [
    {"benchmarks": [{"name": "test_x", "fullname": "t::test_x", "params": {"n": 1}, "stats": {
        "min": 1.0, "max": 2.0, "mean": 1.5, "stddev": 0.1, "rounds": 5, "median": 1.5, "q1": 1.0, "q3": 2.0,
        "iqr": 1.0, "iterations": 1, "data": [1.0, 2.0]}}], "machine_info": {}, "version": "4.0.0", "datetime": "2026"},
    {"results": {"lambada": {"acc,none": 0.5, "acc_stderr,none": 0.01, "alias": "lambada"}},
     "config": {"model": "hf", "model_args": "pretrained=x"}, "versions": {"lambada": 1}, "n-shot": {"lambada": 0}},
]  # fmt: skip


@fuzz(120)
@given(st.randoms(use_true_random=False))
def test_a_file_of_another_tool_is_imported_or_refused(tmp_path_factory: Any, rng: random.Random) -> None:
    folder = tmp_path_factory.mktemp("foreign")
    content = as_json(mutated(rng.choice(FOREIGN), rng))
    content = mutated_bytes(content, rng) if rng.random() < 0.3 else content
    (folder / "theirs.json").write_bytes(rng.choice([content, content, b"[" * 100_000, b"9" * 5000]))
    ends_well(lambda: import_file(folder / "theirs.json", folder / "run"))
