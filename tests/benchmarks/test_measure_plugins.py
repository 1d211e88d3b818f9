"""A package that brings a measure needs one file: suites name it, its cases run, its numbers stand in the tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from mixerzoo.benchmarks.measures import Entry, Measure, measure_class, measures
from mixerzoo.benchmarks.measures.speed import Speed
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.benchmarks.summary import summary_tables
from mixerzoo.models import ModelConfig, count_parameters

SUITE = """\
name: counted
model: {d_model: 16, mixer_defaults: {linear_attention: {heads: 2}}}
layouts: {lin: linear_attention, short: short_convolution}
seeds: [0]
measures:
  - {measure: weight_count, times: 3}
  - {measure: speed, modes: [forward], lengths: [16], rounds: 3, budget_seconds: 0, layouts: [lin]}
"""


def mixerzoo(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from mixerzoo.benchmarks.cli import main; main()", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


def test_a_plugin_measure_runs_in_a_suite_beside_ours(tmp_path: Path, measure_plugin: dict[str, str]) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    done = mixerzoo(measure_plugin, "run", tmp_path / "suite.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for source in ("broken_import (no_such_module:Anything)", "taken_name", "no_measure"):
        assert f"the plug-in {source}" in done.stderr
    assert "'speed' is taken by mixerzoo.benchmarks.measures.speed.Speed" in done.stderr
    assert "the plug-in weight_count" not in done.stderr
    found = [result for result in Run(tmp_path / "run").results() if result.status == "ok"]
    counted = [result for result in found if result.measure == "weight_count"]
    assert sorted(result.layout for result in counted) == ["lin", "short"] and len(found) == 3
    table = done.stdout.split("\nweight count\n")[1].split("└")[0]
    assert "weights" in table and "counted" not in table and "how" not in table
    for result in counted:
        weights = 3 * count_parameters(ModelConfig.from_dict(result.parameters["model"]))["total"]
        assert result.metrics == {"weights": weights, "counted": True, "how": "one by one"}
        assert re.search(rf" {result.layout} .* {weights:,} ", table)
    assert "speed, forward: tokens/s (median) by length" in done.stdout
    reported = mixerzoo(measure_plugin, "report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert reported.returncode == 0, reported.stderr
    assert re.search(r'<h2 id="weight_count">\s*Weight count', page) and '<th scope="col">weights</th>' in page
    summary = (tmp_path / "run" / "summary.csv").read_text()
    assert all(f",{result.metrics['weights']:.1f}," in summary for result in counted)


DIES = """
import os, sys
from typing import Literal
from mixerzoo.benchmarks.measures import Measure

class Dies(Measure):
    measure: Literal["dies"] = "dies"

    def run(self, config, *, seed, device, folder, progress):
        if seed:
            raise RuntimeError("the case itself")
        print("last words of the case", file=sys.stderr, flush=True)
        os._exit(3)
"""
LOUD = """
import traceback
try:
    import no_such_thing
except ImportError:
    traceback.print_exc()
    raise ImportError("[bold]two\\n\x1b[2Jlines[/]") from None
"""
FAILING = """
[mixerzoo.measures]
dies = dies_plugin:Dies
loud = loud_plugin:Measure
leaves = leaving_plugin:Measure
[mixerzoo.mixers]
loud_mixer = loud_plugin:Mixer
[mixerzoo.sections]
loud_section = loud_plugin:SECTION
[mixerzoo.commands]
loud_command = loud_plugin:command
"""


@pytest.fixture
def failing_plugins(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has plug-ins of every kind which cannot be loaded, and a measure that dies."""
    info = tmp_path / "site" / "loud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(FAILING)
    (info.parent / "dies_plugin.py").write_text(DIES)
    (info.parent / "loud_plugin.py").write_text(LOUD)
    (info.parent / "leaving_plugin.py").write_text("raise SystemExit('left')\n")
    return {**os.environ, "PYTHONPATH": str(info.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def test_a_plugin_that_fails_is_named_and_adds_nothing_to_the_errors_of_cases(
    tmp_path: Path, failing_plugins: dict[str, str]
) -> None:
    suite = "name: d\nlayouts: {lin: linear_attention}\nseeds: [0, 1]\nmeasures: [{measure: dies}]\n"
    (tmp_path / "suite.yaml").write_text(suite)
    done = mixerzoo(failing_plugins, "run", tmp_path / "suite.yaml", "--out", tmp_path / "run", "--no-estimate")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    died, raised = sorted(Run(tmp_path / "run").results(), key=lambda result: result.seed)
    assert died.error == "exited with code 3\nlast words of the case"
    assert (raised.error or "").startswith("RuntimeError: the case itself") and "loud" not in (raised.error or "")
    failed = Run(tmp_path / "run").environment()["plugins_failed"]
    said = "ImportError: [bold]two [2Jlines[/]"
    assert failed == {
        "loud_mixer (loud_plugin:Mixer)": said,
        "loud (loud_plugin:Measure)": said,
        "leaves (leaving_plugin:Measure)": "SystemExit: left",
        "loud_section (loud_plugin:SECTION)": said,
        "loud_command (loud_plugin:command)": said,
    }
    listed = mixerzoo(failing_plugins, "list", "identity")
    assert listed.returncode == 0 and "Traceback" not in listed.stderr
    below = listed.stdout.split("plug-ins that could not be loaded")[1]
    for source, error in failed.items():
        assert source in below and error in below and source in done.stderr
    assert "\x1b" not in listed.stdout + done.stderr


def test_a_mistaken_name_is_answered_with_that_of_a_plugin(tmp_path: Path, measure_plugin: dict[str, str]) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("weight_count", "weigth_count"))
    done = mixerzoo(measure_plugin, "run", tmp_path / "suite.yaml", "--dry-run")
    assert done.returncode == 2
    assert (
        "suite.yaml:6: measures[0].measure: unknown measure 'weigth_count'; did you mean weight_count?" in done.stderr
    )


def line(measure: str, metrics: dict[str, Any], seed: int = 0) -> ResultLine:
    known = {"case": f"{measure}{seed}", "layout": "[b]l[/b]", "parameters": {}, "status": "ok", "seconds": 1.0}
    return ResultLine(**known, measure=measure, seed=seed, metrics=metrics)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[Measure]:
    """A measure that is known during a test."""
    monkeypatch.setattr("mixerzoo.benchmarks.measures.registry._measures", measures())

    class Own(Measure):
        measure: Literal["own_measure"] = "own_measure"

    return Own


def test_a_measure_is_known_once_its_class_is_made(own: type[Measure]) -> None:
    assert measure_class("own_measure") is own and not own.exclusive and not own.reusable
    assert own().computes_in == "float32" and own().cases() == [own()]

    class Special(own):  # type: ignore[valid-type, misc]
        more: int = 1

    assert measure_class("own_measure") is own  # what says no name of its own is no further measure
    assert Special().more == 1


@pytest.mark.parametrize("annotation", [str, Literal["one", "two"], Literal[3]])
def test_a_measure_without_a_name_of_its_own_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r'needs its name as `measure: Literal\["name"\]`'):
        type("Nameless", (Measure,), {"__annotations__": {"measure": annotation}})


def test_two_measures_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match=r"'speed' is taken by mixerzoo\.benchmarks\.measures\.speed\.Speed"):
        type("Impostor", (Measure,), {"__annotations__": {"measure": Literal["speed"]}})
    assert measure_class("speed") is Speed


def test_the_terminal_shows_every_number_of_a_measure_that_says_nothing_else(own: type[Measure]) -> None:
    results = [line("own_measure", {"a_b": 1.5, "[red]": 2, "text": "x", "flag": True, "rows": [1]}, n) for n in (0, 1)]
    results.append(line("nobody_has_this", {"a": 1}))
    tables = summary_tables(results)
    assert list(tables) == ["own measure"]
    columns = [(str(column.header), list(column.cells)) for column in tables["own measure"].columns]
    assert columns == [("layout", [r"\[b]l\[/b]"]), (r"\[red]", ["2"]), ("a b", ["1.5"])]


def test_a_measure_can_say_what_the_terminal_shows(own: type[Measure], monkeypatch: pytest.MonkeyPatch) -> None:
    def entries(result: ResultLine) -> list[Entry]:
        shown = Entry("mine, by length", 64, (result.metrics or {})["x"], lambda values: f"[i]{max(values)}")
        return [shown]

    monkeypatch.setattr(own, "entries", entries)
    (table,) = summary_tables([line("own_measure", {"x": 1}), line("own_measure", {"x": 4}, 1)]).values()
    assert [list(column.cells) for column in table.columns] == [[r"\[b]l\[/b]"], [r"\[i]4"]]
