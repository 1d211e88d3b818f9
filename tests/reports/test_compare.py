"""What `mixerzoo compare` claims of two runs, what it refuses, and when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixerzoo.benchmarks.cli import build_app
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError
from mixerzoo.reports import compare_text
from mixerzoo.reports.change import Change, judged
from mixerzoo.reports.compare import Comparison, compare
from mixerzoo.reports.inference import compare_successes
from typer.testing import CliRunner

from .conftest import HOSTILE, made_up_lines, planned, write_run

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
Edit = Callable[[ResultLine], "ResultLine | None"]


@pytest.fixture(scope="module")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the made-up run, which is quicker to compare."""
    kept = ("swa", "softmax", "linear", "ttt_linear", HOSTILE)
    lines = [line for line in made_up_lines() if line.parameters.get("lengths") in (None, [256], [8192])]
    lines = [line for line in lines if line.layout in kept and line.parameters.get("modes") != ["prefill"]]
    for line in lines:
        if line.measure == "recall" and line.metrics:
            line.metrics["answers"] = [answer for answer in line.metrics["answers"] if answer["load"] == 16]
    folder = tmp_path_factory.mktemp("compare") / "before"
    write_run(folder, [], planned(lines))
    return written(folder, lines)


def written(folder: Path, lines: list[ResultLine]) -> Path:
    """`lines` as all results of a run, without the syncing of each that a run that may be killed needs."""
    (folder / "results.jsonl").write_bytes(b"".join(encode_line(line.model_dump()) for line in lines))
    return folder


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """`edited(edit, run)`: a copy of a run in which every line went through `edit`; None leaves it out."""

    def make(edit: Edit, run: Path, name: str = "after") -> Path:
        folder = tmp_path / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.html", "figures", "tables", "results.jsonl"))
        lines = [edit(line.model_copy(deep=True)) for line in Run(run).results()]
        return written(folder, [line for line in lines if line is not None])

    return make


def slower(line: ResultLine, factor: float) -> ResultLine:
    """A line of `speed` with every round `factor` times as long."""
    assert line.metrics is not None
    line.metrics["samples"] = [factor * second for second in line.metrics["samples"]]
    return line


def with_machine(folder: Path, **values: Any) -> Path:
    run = Run(folder)
    environment = run.environment()
    environment["machine"] |= values
    run.write_environment(environment)
    return folder


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `mixerzoo compare`; an error of the user's is told by its message."""
    result = CliRunner().invoke(build_app(), ["compare", *map(str, arguments)], env={"COLUMNS": "160"})
    return (2, str(result.exception)) if isinstance(result.exception, ValueError) else (result.exit_code, result.output)


def of(found: Comparison, *verdicts: str) -> set[tuple[str, str]]:
    """(measure, layout) of the changes with these verdicts."""
    return {(change.measure, change.layout) for change in found.having(*verdicts)}


def worsened(line: ResultLine) -> ResultLine:
    """One layout slower, one faster, one forgets, one grows, one runs out of memory, one recovers."""
    if line.measure == "speed" and line.layout in (HOSTILE, "linear"):
        return slower(line, 1.2 if line.layout == HOSTILE else 0.9)
    if line.measure == "recall" and line.layout == "ttt_linear" and line.metrics:
        for answer in line.metrics["answers"]:
            answer["hits"] = [hits.replace("1", "0", len(hits) // 4) for hits in answer["hits"]]
    if line.measure == "memory" and line.layout == "swa" and line.metrics:
        line.metrics["peak_bytes"] = int(1.1 * line.metrics["peak_bytes"])
        line.metrics["activation_bytes_per_token"] *= 1.009  # counts as equal
    if line.measure == "memory" and line.layout == "softmax" and line.parameters["lengths"] == [8192]:
        return line.model_copy(update={"metrics": None, "status": "out_of_memory", "error": "12 GB"})
    if line.status == "timeout":
        return line.model_copy(update={"metrics": {}, "status": "ok", "error": None})
    return line


def test_a_run_equals_itself(made_up_run: Path) -> None:
    found = compare(made_up_run, made_up_run)
    assert {change.verdict for change in found.changes} == {"equal"}
    assert {c.measure for c in found.changes} == {"training", "recall", "speed", "memory", "state", "perplexity"}
    assert (found.failed, found.only_before, found.only_after, found.context) == ([], {}, {}, {})
    assert found.warnings == ["Both runs hold the same results, line by line."]
    assert command(made_up_run, made_up_run, "--fail-on-regression", "0%")[0] == 0


def test_regressions_and_gains_are_those_that_were_made(made_up_run: Path, edited: Callable[..., Path]) -> None:
    found = compare(made_up_run, edited(worsened, made_up_run))
    assert of(found, "regression") == {("speed", HOSTILE), ("recall", "ttt_linear"), ("memory", "swa")}
    assert of(found, "gain") == {("speed", "linear")}
    slow = next(change for change in found.having("regression") if change.measure == "speed")
    assert slow.worse == pytest.approx(0.2) and 0.1 < slow.low < 0.2 < slow.high < 0.3
    forgot = next(change for change in found.having("regression") if change.measure == "recall")
    assert forgot.unit == "points" and forgot.worse == pytest.approx(-forgot.change) and forgot.worse > 0.2
    assert [line.split(": ")[1] for line in found.failed] == ["out of memory, was ok"] * 2
    assert [line.split(": ")[1] for line in found.recovered] == ["ok, was timeout"]


def test_failing_needs_a_regression_beyond_the_tolerance(made_up_run: Path, edited: Callable[..., Path]) -> None:
    after = edited(lambda line: slower(line, 1.2) if line.measure == "speed" and line.metrics else line, made_up_run)
    assert command(made_up_run, after)[0] == 0
    assert command(made_up_run, after, "--fail-on-regression", "15%")[0] == 1
    assert command(made_up_run, after, "--fail-on-regression", "25")[0] == 0
    assert command(after, made_up_run, "--fail-on-regression", "5%")[0] == 0  # gains
    code, said = command(made_up_run, after, "--fail-on-regression", "much")
    assert code == 2 and "such as 5%" in said
    assert command(made_up_run)[0] == 2
    assert command(made_up_run, after, "--out", "x.pdf")[0] == 2


def test_a_case_that_fails_now_fails_whatever_the_tolerance(made_up_run: Path, edited: Callable[..., Path]) -> None:
    after = edited(worsened, made_up_run)
    code, output = command(made_up_run, after, "--fail-on-regression", "1000%")
    assert code == 1
    assert output.index("Ended ok before") < output.index("Regressions") < output.index("Gains")
    assert "2 fail the tolerance" in output


def test_several_runs_are_each_compared_with_the_first(made_up_run: Path, edited: Callable[..., Path]) -> None:
    good = edited(lambda line: line, made_up_run, "good")
    bad = edited(worsened, made_up_run, "bad")
    code, output = command(made_up_run, good, bad, "--fail-on-regression", "5%")
    assert code == 1
    assert output.count("compared with") == 2


def test_noise_is_not_called_a_change(made_up_run: Path, edited: Callable[..., Path]) -> None:
    dice = np.random.default_rng(3)

    def noisy(line: ResultLine) -> ResultLine:
        if line.measure == "speed" and line.metrics:
            noise = np.exp(dice.normal(0, 0.04, len(line.metrics["samples"])))
            line.metrics["samples"] = list(line.metrics["samples"] * noise)
        return line

    found = compare(made_up_run, edited(noisy, made_up_run))
    speeds = [change for change in found.changes if change.measure == "speed"]
    alone = [change for change in speeds if not change.low <= 0 <= change.high]
    assert alone, "some of the intervals, of 95 % each, miss"
    assert of(found, "regression", "gain") == set()


def test_holm_corrects_over_all_numbers_of_a_comparison() -> None:
    made = [
        Change("speed", "a", str(p), "seconds", "", "", 0.1, 0.05, 0.15, p_value=p, kind="rounds")
        for p in (0.01, 0.02, 0.04)
    ]
    assert [change.verdict for change in judged(made)] == ["regression", "regression", "regression"]
    many = [*made, *[Change("speed", "b", "", "seconds", "", "", 0.1, -1, 1, p_value=0.9, kind="rounds")] * 5]
    assert {change.verdict for change in judged(many)} == {"cannot tell"}
    untested = Change("recall", "b", "", "points", "", "", 0.1, -1, 1, p_value=0.9, kind="these models")
    assert [c.verdict for c in judged([*made, *[untested] * 9])][:3] == ["regression"] * 3


def test_few_rounds_and_few_seeds_cannot_tell(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def few(line: ResultLine) -> ResultLine | None:
        if line.measure == "speed" and line.metrics:
            line.metrics["samples"] = line.metrics["samples"][:4]
        return line if line.seed in (0, 1) else None

    before = edited(few, made_up_run, "before")
    found = compare(before, edited(worsened, before))
    assert of(found, "regression") == {("memory", "swa")}
    noted = [c for c in found.having("cannot tell") if c.measure == "recall" and c.layout == "ttt_linear"]
    assert noted and all("these models only" in change.note for change in noted)


def test_layouts_are_matched_by_their_models_not_their_labels(made_up_run: Path, edited: Callable[..., Path]) -> None:
    names = {"softmax": "swa", "swa": "softmax", "linear": "[red]new[/]"}
    swapped = edited(lambda line: line.model_copy(update={"layout": names.get(line.layout, line.layout)}), made_up_run)
    found = compare(made_up_run, swapped)
    assert {change.verdict for change in found.changes} == {"equal"}
    assert len(found.warnings) == 3 and found.warnings[0].startswith("'swa' is 'softmax'")
    assert "[red]new[/]" in command(made_up_run, swapped)[1]


def test_a_name_that_went_to_another_model_is_not_mixed_up(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def moved(line: ResultLine) -> ResultLine:
        if line.layout == "swa":
            return line.model_copy(update={"layout": "sliding"})
        if line.layout == "linear":
            line.parameters["model"]["d_model"] = 128
            return line.model_copy(update={"layout": "swa"})
        return line

    found = compare(made_up_run, edited(moved, made_up_run))
    assert {change.verdict for change in found.changes} == {"equal"}
    assert "swa" in {change.layout for change in found.changes}
    assert "linear" not in {change.layout for change in found.changes}
    assert {layout for _, layout in found.only_after} == {"swa (the other model)"}


def test_another_model_of_the_same_name_is_refused(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def wider(line: ResultLine) -> ResultLine:
        if line.layout == "linear":
            line.parameters["model"]["d_model"] = 128
        return line

    found = compare(made_up_run, edited(wider, made_up_run))
    assert "linear" not in {change.layout for change in found.changes}
    assert {item.why for item in found.refused if item.layout == "linear"} == {"another model: d_model 64 and 128"}


def test_speed_is_refused_across_machines_and_threads(made_up_run: Path, edited: Callable[..., Path]) -> None:
    other = with_machine(edited(worsened, made_up_run), cpu="Another CPU")
    found = compare(made_up_run, other)
    assert "speed" not in {change.measure for change in found.changes}
    assert ("recall", "ttt_linear") in of(found, "regression")
    why = "measured on another machine: cpu Example CPU <b>9000</b> and Another CPU"
    assert {item.why for item in found.refused if item.measure == "speed"} == {why}
    code, output = command(made_up_run, other)
    assert code == 0 and "Another CPU" in output

    def threads(line: ResultLine) -> ResultLine:
        line.parameters["threads"] = 2
        return line

    found = compare(made_up_run, edited(threads, made_up_run, "threads"))
    assert {item.why for item in found.refused} == {"measured on another machine: threads 1 and 2"}
    assert {change.measure for change in found.changes} == {"training", "recall", "memory", "state", "perplexity"}


def test_another_host_of_the_same_kind_is_a_warning(made_up_run: Path, edited: Callable[..., Path]) -> None:
    found = compare(made_up_run, with_machine(edited(lambda line: line, made_up_run), host="elsewhere"))
    assert "speed" in {change.measure for change in found.changes}
    assert "different names (bench and elsewhere)" in found.warnings[0]
    assert found.context["host"] == ("bench", "elsewhere")


def test_recall_is_compared_on_the_same_questions_only(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def fewer(line: ResultLine) -> ResultLine:
        if line.measure == "recall" and line.layout == "softmax" and line.metrics:
            for answer in line.metrics["answers"]:
                answer["hits"] = answer["hits"][:-1]
        if line.layout == "ttt_linear" and line.metrics and "text" in line.metrics:
            line.metrics["text"] = {**line.metrics["text"], "sha256": "cd" * 32}
        return line

    found = compare(made_up_run, edited(fewer, made_up_run))
    assert {"softmax", "ttt_linear"} & {c.layout for c in found.changes if c.measure == "recall"} == set()
    reasons = {item.layout: item.why for item in found.refused}
    assert reasons["softmax"].endswith("the questions are not the same")
    assert reasons["ttt_linear"].startswith("another text: SHA-256 abab")


def test_who_is_not_taught_any_more_is_said(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def untaught(line: ResultLine) -> ResultLine:
        if line.measure == "training" and line.layout == "softmax" and line.metrics and line.metrics["training"]["bar"]:
            line.metrics["training"]["bar"]["passed"] = False
        return line

    found = compare(made_up_run, edited(untaught, made_up_run))
    assert "taught in one run only: 3 of 3 seeds before, 0 of 3 seeds after" in {item.why for item in found.refused}
    taught = next(c for c in found.changes if c.layout == "softmax" and c.what == "seeds taught")
    assert (taught.before, taught.after, taught.verdict) == ("3 of 3", "0 of 3", "cannot tell")


def test_the_sign_test_of_taught_seeds_needs_six() -> None:
    all_of, none = (dict.fromkeys(range(6), passed) for passed in (True, False))
    assert compare_successes(all_of, none).verdict == "better"
    assert compare_successes(none, all_of).p_value == pytest.approx(2 / 64)
    five = dict.fromkeys(range(5), True)
    assert compare_successes(five, none).verdict == "cannot tell"
    assert compare_successes({0: True, 1: True}, none).kind == "nothing"


def test_other_settings_are_not_mixed(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def batched(line: ResultLine) -> ResultLine:
        if line.measure == "speed":
            line.parameters["batch"] = 4
            return line.model_copy(update={"case": line.case[::-1]})
        return line

    found = compare(made_up_run, edited(batched, made_up_run))
    assert "speed" not in {change.measure for change in found.changes}
    assert {item.why for item in found.refused} == {"other settings: batch = 1 before; batch = 4 after"}


def test_cases_of_one_run_only_are_counted(made_up_run: Path, edited: Callable[..., Path]) -> None:
    after = edited(lambda line: line if line.measure != "recall" or line.seed != 2 else None, made_up_run)
    found = compare(made_up_run, after)
    assert found.only_before["recall", "softmax"] == 2
    assert found.only_after == {}
    assert any("is not finished" in warning for warning in found.warnings)


def test_another_backend_is_compared_and_said(made_up_run: Path, edited: Callable[..., Path]) -> None:
    def triton(line: ResultLine) -> ResultLine:
        return line.model_copy(update={"backends": {"linear": ["triton"]}}) if line.layout == "linear" else line

    found = compare(made_up_run, edited(triton, made_up_run))
    notes = {change.note for change in found.changes if change.layout == "linear" and change.measure == "speed"}
    assert notes == {"backends before: attention: sdpa; linear: torch; after: linear: triton"}


def test_all_layouts_moving_alike_is_the_machine(made_up_run: Path, edited: Callable[..., Path]) -> None:
    after = edited(lambda line: slower(line, 1.2) if line.measure == "speed" and line.metrics else line, made_up_run)
    assert any("All 5 layouts are 20% slower alike" in warning for warning in compare(made_up_run, after).warnings)
    one = edited(
        lambda line: slower(line, 1.2) if line.measure == "speed" and line.layout == "swa" else line, after, "x"
    )
    assert not any("alike" in warning for warning in compare(after, one).warnings)


def test_a_measure_without_a_section_is_changed_and_fails_nothing(tmp_path: Path) -> None:
    def run(name: str, factor: float) -> Path:
        probe = next(line for line in made_up_lines() if line.measure == "probe")
        lines = [
            probe.model_copy(
                update={
                    "case": f"{seed:012x}",
                    "seed": seed,
                    "status": "ok",
                    "error": None,
                    "metrics": {"answer": factor * (42.0 + 0.1 * seed)},
                }
            )
            for seed in range(5)
        ]
        return written(write_run(tmp_path / name, [], planned(lines)), lines)

    before, after = run("before", 1.0), run("after", 1.5)
    [change] = compare(before, after).changes
    assert (change.measure, change.verdict, change.better) == ("probe", "changed", None)
    assert change.change == pytest.approx(0.5)
    code, output = command(before, after, "--fail-on-regression", "5%")
    assert code == 0 and "Changed" in output


# --- Published runs ---


def in_turn_slower(line: ResultLine, factors: dict[str, float]) -> ResultLine:
    """A line of decode_speed with the rounds of each contender `factors` times as long."""
    assert line.metrics is not None
    for row in line.metrics["rows"]:
        factor = factors.get(row["backend"], 1.0)
        row["samples"] = [second * factor for second in row["samples"]]
        row |= {name: row[name] * factor for name in ("median", "q1", "q3")}
    return line


def test_what_is_timed_in_turn_knows_the_code_from_the_machine(edited: Callable[..., Path]) -> None:
    run = PUBLISHED / "decode-speed"
    machine = edited(lambda line: in_turn_slower(line, {"calls": 1.4, "decoder": 1.4}), run, "machine")
    found = compare(run, machine)
    assert sum(change.unit == "seconds by those of calls" for change in found.changes) == 14
    assert of(found, "regression", "gain") == set()
    code = edited(lambda line: in_turn_slower(line, {"decoder": 1.4} if line.layout == "Mamba" else {}), run, "code")
    found = compare(run, code)
    assert of(found, "regression") == {("decode_speed", "Mamba")}
    [change] = found.having("regression")
    assert change.unit == "seconds by those of calls" and change.worse == pytest.approx(0.4)


def test_ops_are_held_against_what_runs_beside_them(edited: Callable[..., Path]) -> None:
    run = PUBLISHED / "fwpkm-speed"
    found = compare(run, edited(lambda line: in_turn_slower(line, {"compact": 1.5}), run))
    units = {change.unit for change in found.having("regression")}
    assert units <= {"seconds by those of reference", "seconds by those of copying"} and units
    assert not any("reference{" in change.what for change in found.changes)
    assert {change.unit for change in found.having("equal")} == {"bytes"}


def test_published_suites_are_compared_where_their_cases_match() -> None:
    found = compare(PUBLISHED / "recall-capacity", PUBLISHED / "extrapolation-mini")
    assert {change.verdict for change in found.changes} == {"equal"}  # one took the models of the other
    assert found.only_before and found.only_after
    assert found.context["suite"] == ("recall-capacity", "extrapolation-mini")


def test_runs_with_nothing_in_common_say_what_differs() -> None:
    code, said = command(PUBLISHED / "quick", PUBLISHED / "decode-speed")
    assert code == 2
    assert "measures: memory, recall, speed, training before; decode_speed after" in said
    code, said = command(PUBLISHED / "quick", PUBLISHED / "recall-capacity")
    assert code == 2
    assert "recall: another model: vocab_size 449 and 833 (sliding window + FwPKM, softmax" in said


# --- Runs that cannot be read ---


def test_runs_that_cannot_be_read_are_errors(made_up_run: Path, edited: Callable[..., Path], tmp_path: Path) -> None:
    code, said = command(made_up_run, tmp_path / "nowhere")
    assert code == 2 and "holds no run" in said
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(RunError, match="no results yet"):
        compare(made_up_run, empty)
    damaged = edited(lambda line: line, made_up_run, "damaged")
    with (damaged / "results.jsonl").open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(RunError, match="is not JSON"):
        compare(made_up_run, damaged)
    foreign = edited(lambda line: line, made_up_run, "foreign")
    Run(foreign).write_environment({**Run(foreign).environment(), "foreign": {"tool": "pytest-benchmark"}})
    with pytest.raises(RunError, match="results of pytest-benchmark"):
        compare(made_up_run, foreign)


def test_an_interrupted_run_is_compared_by_what_it_has(made_up_run: Path, tmp_path: Path) -> None:
    lines = list(made_up_lines())
    cut = written(write_run(tmp_path / "cut", [], planned(lines, final=False)), lines[: len(lines) // 3])
    with (cut / "results.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "case": "torn')
    found = compare(made_up_run, cut)
    assert {change.verdict for change in found.changes} == {"equal"}
    assert any("is not finished" in warning for warning in found.warnings) and found.only_before


# --- What is written ---


def test_markdown_csv_and_json(made_up_run: Path, edited: Callable[..., Path], tmp_path: Path) -> None:
    after = edited(worsened, made_up_run)
    found = compare(made_up_run, after)
    text = compare_text.as_markdown([found], 0.05)
    assert "<script" not in text and "\\*bold\\* \\| \\`code\\`" in text
    assert text.index("no longer ok") < text.index("### Regressions") < text.index("### Gains")
    assert text.count("<details>") == text.count("</details>") > 0
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}
    table = compare_text.as_table([found])
    assert len(table) == len(found.changes) and list(table["verdict"][:3]) == ["regression"] * 3
    assert command(made_up_run, after, "--out", tmp_path / "x.json", "--fail-on-regression", "5%")[0] == 1
    document = json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["comparisons"][0]["regressions_beyond_tolerance"] == found.beyond(0.05)
    assert document["schema_version"] == 1
    assert document["comparisons"][0]["counts"]["regression"] == len(found.having("regression"))
    assert document["comparisons"][0]["failed"] == found.failed


def test_the_terminal_shows_hostile_names_as_text(made_up_run: Path, edited: Callable[..., Path]) -> None:
    _, output = command(made_up_run, edited(worsened, made_up_run), "--all")
    assert "</script><script>alert" in output
    assert "Equal" in output
    assert "greatest of" not in output
