"""Runs of before are read as if they had been made today, and nothing that they say is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.case import Case
from mixerzoo.benchmarks.runs import Run, RunError
from mixerzoo.benchmarks.schema import SCHEMA_VERSION, SchemaError, migrate

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
RUNS = sorted(path.parent for path in PUBLISHED.glob("*/suite.yaml"))
LINE = {"schema_version": 1, "case": "a", "layout": "l", "seed": 0, "status": "ok", "seconds": 1.0}
OF_THE_RUNNER = ("model", "layout_line", "device", "tf32", "threads")  # parameters that are not the measure's


def only_added(new: Any, old: Any) -> bool:
    """Whether `new` holds everything that `old` does, at every depth."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and only_added(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(only_added, new, old))
    return bool(new == old)


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_every_published_run_is_read_and_only_added_to(folder: Path) -> None:
    results = Run(folder).results()
    written = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(results) == len(written) > 0
    for new, old in zip(results, written):
        assert new.schema_version == SCHEMA_VERSION
        assert old["schema_version"] > 1 or new.ended is None
        assert old["schema_version"] > 2 or (new.machine, new.attempts, new.peak_bytes) == (None, [], None)
        about_the_line = ("schema_version", "sha256")
        assert only_added(new.model_dump(), {key: value for key, value in old.items() if key not in about_the_line})


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_ids_of_published_cases_are_what_they_were(folder: Path) -> None:
    for result in Run(folder).results():
        own = {name: value for name, value in result.parameters.items() if name not in OF_THE_RUNNER}
        more = {"device": result.parameters["device"], "tf32": result.parameters.get("tf32", False)}
        case = Case("", "", result.parameters["model"], result.measure, own, result.seed, exclusive=False, **more)
        assert case.id == result.case


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_published_environments_name_the_mixers(folder: Path) -> None:
    run = Run(folder)
    environment, written = run.environment(), json.loads(run.environment_path.read_text())
    assert only_added(environment, {key: value for key, value in written.items() if key != "schema_version"})
    assert environment["schema_version"] == SCHEMA_VERSION
    assert written.get("schema_version", 1) > 2 or environment["machines"] == {}
    assert list(environment["layout_mixers"]) == list(run.suite()["layouts"])
    used = {name for names in environment["layout_mixers"].values() for name in names}
    assert used == set(environment["cards"]) and used
    assert all(card["year"] > 1900 and card["family"] for card in environment["cards"].values())


@pytest.mark.parametrize(
    ("measure", "old", "new"),
    [
        (
            "training",
            {"training": {"steps": 1}},
            {"training": {"steps": 1, "resumed_at": None, "warnings": []}, "data": None},
        ),
        (
            "recall",
            {"rows": [{"correct": 1}, "?"]},
            {"rows": [{"correct": 1, "recent": False}, "?"], "state_bytes": {}},
        ),
        ("speed", {"samples": [1.0]}, {"samples": [1.0], "rounds": 0}),
        ("mixer_speed", {"rows": [{"ran": {"a": ["b"]}}, {}]}, {"rows": [{"ran": {"a": ["b"]}}, {"ran": {}}]}),
        ("mixer_speed", {"rows": 7}, {"rows": 7}),
        ("my_own", {"rows": [{}]}, {"rows": [{}]}),
        ("recall", None, None),
    ],
)
def test_what_an_old_line_lacks_is_filled_in(measure: str, old: Any, new: Any) -> None:
    line = {**LINE, "measure": measure, "parameters": {"model": {"layout": "gla"}, "mine": 1}, "metrics": old}
    before = json.dumps(line)
    found = migrate(line)
    assert found["metrics"] == new and found["ended"] is None and found["schema_version"] == SCHEMA_VERSION
    assert found["parameters"]["layout_line"] == "gla" and found["parameters"]["mine"] == 1
    assert json.dumps(line) == before and migrate(found) == found


@pytest.mark.parametrize("version", [0, -1, True, "1", None, SCHEMA_VERSION + 1])
def test_a_line_of_no_version_or_a_newer_one_is_refused(version: Any) -> None:
    with pytest.raises(SchemaError, match="schema version"):
        migrate({**LINE, "schema_version": version})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    layouts = {"both": "gla*2, fwpkm | fwpkm@0", "gone": "gla, sold_mixer(size=2)", "<b>": "no ( layout", "hybrid": 7}
    run.write_suite({"name": "s", "layouts": layouts})
    return run


def test_mixers_that_are_gone_and_lines_that_are_none_do_no_harm(run: Run) -> None:
    run.write_environment({"device": "cpu"})
    environment = run.environment()
    mixers = {"both": ["gla", "fwpkm"], "gone": ["gla", "sold_mixer"], "<b>": [], "hybrid": []}
    assert environment["layout_mixers"] == mixers and set(environment["cards"]) == {"gla", "fwpkm"}
    run.suite_path.unlink()
    assert run.environment()["layout_mixers"] == {}


def test_an_environment_of_a_newer_version_is_refused(run: Run) -> None:
    run.write_environment({"schema_version": 99})
    with pytest.raises(RunError, match=r"environment\.json has schema version 99, and this mixerzoo reads"):
        run.environment()


def test_a_foreign_run_is_known_as_one_and_its_labels_are_no_layouts(run: Run) -> None:
    foreign = {"tool": "pytest-benchmark", "file": "found.json", "sha256": "ab" * 32}
    run.write_environment({"foreign": foreign})
    assert run.environment()["foreign"] == foreign
    assert run.environment()["cards"] == run.environment()["layout_mixers"] == {}


def test_reading_a_run_of_today_does_without_torch(run: Run) -> None:
    mixers = {"cards": {"gla": {"family": "linear"}}, "layout_mixers": {"both": ["gla"]}}
    run.write_environment({"schema_version": SCHEMA_VERSION, **mixers})
    run.results_path.write_text(json.dumps({**LINE, "measure": "speed", "parameters": {}}) + "\n")
    program = (
        "import sys; from mixerzoo.benchmarks.runs import Run, results_digest; run = Run(sys.argv[1]);"
        "run.results(), run.environment(), results_digest(run.folder); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(run.folder)]).returncode == 0
