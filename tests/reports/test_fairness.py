"""What a report says of whether the comparison was fair, on the made-up run with one thing changed at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports.doubts import Doubt
from mixerzoo.reports.fairness import fairness
from mixerzoo.reports.result import Slimmer
from mixerzoo.reports.tables import RunData, read_run, tabulate

from .conftest import HOSTILE, made_up_lines

KEPT = ("training", "tuning", "speed", "memory")


@pytest.fixture(scope="module")
def lines() -> list[ResultLine]:
    return [line for line in made_up_lines() if line.measure in KEPT]


@pytest.fixture(scope="module")
def make(made_up_run: Path, lines: list[ResultLine]) -> Callable[..., RunData]:
    """`make(change, **environment)`: the run with each line as `change` gives it back."""
    run = read_run(made_up_run)

    def made(change: Callable[[ResultLine], ResultLine] = lambda line: line, **environment: Any) -> RunData:
        known = {**run.environment, "source": {"commit": "c" * 40, "dirty": False}, **environment}
        return tabulate(run.folder, run.suite, known, list(map(Slimmer(), map(change, lines))))

    return made


def doubts(run: RunData) -> list[Doubt]:
    return fairness(run).doubts


def new(run: RunData, than: RunData) -> list[Doubt]:
    """What is doubted of a run that is not of another."""
    known = doubts(than)
    return [doubt for doubt in doubts(run) if doubt not in known]


def updated(line: ResultLine, metrics: dict[str, Any] | None = None, **parameters: Any) -> ResultLine:
    changed = {"parameters": {**line.parameters, **parameters}}
    return line.model_copy(update=changed | ({"metrics": {**(line.metrics or {}), **metrics}} if metrics else {}))


def test_a_dirty_or_unknown_commit_concerns_everything(make: Callable[..., RunData]) -> None:
    for source, short in (({"commit": "c" * 40, "dirty": True}, "dirty commit"), ({}, "commit not known")):
        (doubt,) = new(make(source=source), make())
        assert doubt.short == short and doubt.concerns("recall") and doubt.concerns("anything")
    assert "commit not known" in fairness(make(source={})).of_all
    (doubt,) = new(make(source={}, rebuilt="2026-01-02"), make())
    assert "mixerzoo repair (2026-01-02)" in doubt.text and doubt.concerns("anything")


def test_cases_of_another_start_or_run_are_named_with_what_differs(make: Callable[..., RunData]) -> None:
    source = [{"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": False}]
    resumed = [{"started": "2026-02-01", "command": "", "differs": {"source": source, "threads": [2, 4]}}]
    (doubt,) = new(make(resumed=resumed), make())
    assert "source (commit aaaaaaaaaaaa… to bbbbbbbbbbbb…) and threads (2 to 4)" in doubt.text
    assert "An unknown number of cases" in doubt.text and doubt.concerns("speed")
    late = make(
        lambda li: li.model_copy(update={"ended": f"2026-0{3 if li.measure == 'speed' else 1}"}), resumed=resumed
    )
    (doubt,) = [doubt for doubt in doubts(late) if "later start" in doubt.text]
    assert doubt.text.startswith("168 cases") and doubt.concerns("speed") and not doubt.concerns("recall")
    assert new(make(resumed=[{"started": "2026", "differs": {}}]), make()) == []
    resumed[0]["started"] = "2025-12-31"  # before the first start: the clock went backwards
    back = make(lambda li: li.model_copy(update={"ended": "2025-11"}), resumed=resumed)
    (doubt,) = [doubt for doubt in doubts(back) if "later start" in doubt.text]
    assert "An unknown number of cases" in doubt.text and doubt.concerns("anything")
    other = {"first": {"source": {"commit": "d" * 40, "dirty": True}}, "same": {"source": {"commit": "c" * 40}}}
    (doubt,) = new(make(reused=other), make())
    assert doubt.text.startswith("Some cases were taken over from the run first, made with commit dddd")
    assert "uncommitted changes" in doubt.text


def test_other_threads_and_other_backends_are_told_for_the_measure(make: Callable[..., RunData]) -> None:
    own = lambda line: line.measure == "speed" and line.layout == "linear"  # noqa: E731
    (doubt,) = new(make(lambda line: updated(line, threads=8) if own(line) else line), make())
    assert "8 threads: linear" in doubt.text and doubt.short == "threads differ between layouts"
    assert doubt.concerns("speed") and not doubt.concerns("memory")
    slow = lambda line: line.measure == "speed" and line.layout == "swa"  # noqa: E731
    ran = {"backends": {"attention": ["reference"]}}
    found = new(make(lambda line: line.model_copy(update=ran) if slow(line) else line), make())
    (doubt,) = [doubt for doubt in found if "op attention" in doubt.text]
    assert "reference in swa" in doubt.text and "sdpa in" in doubt.text and doubt.concerns("speed")


def test_unmatched_parameters_are_told_with_how_far_they_are_apart(make: Callable[..., RunData]) -> None:
    (doubt,) = [doubt for doubt in doubts(make()) if doubt.short.startswith("parameters")]
    assert "the widths were not matched" in doubt.text and HOSTILE in doubt.text
    within = make(lambda line: updated(line, {"parameters": 100_000 + len(line.layout)}) if line.metrics else line)
    assert not [doubt for doubt in doubts(within) if "arameters" in doubt.text]


def test_few_rounds_and_few_seeds_are_told(make: Callable[..., RunData]) -> None:
    few = lambda line: line.measure == "speed" and line.layout == "swa" and line.metrics is not None  # noqa: E731
    (doubt,) = new(make(lambda line: updated(line, {"rounds": 3}) if few(line) else line), make())
    assert doubt.text == "24 of 167 timings of speed are of fewer than 10 rounds, the fewest of 3."
    seeds = {doubt.short: doubt for doubt in doubts(make()) if "seed" in doubt.short}
    assert seeds["one seed"].concerns("perplexity") and not seeds["one seed"].concerns("recall")
    one = tabulate(Path("."), {}, {}, [line for line in make().lines if line.seed in (0, 100)])
    (doubt,) = [doubt for doubt in doubts(one) if doubt.short == "one seed" and doubt.concerns("recall")]
    assert "every layout" in doubt.text and doubt.concerns("training")


def test_the_same_batches_in_the_same_order_are_told_and_others_named(make: Callable[..., RunData]) -> None:
    def ordered(line: ResultLine, strange: str = "") -> ResultLine:
        if line.measure != "training":
            return line
        digest = ("f" if line.layout == strange else str(line.seed)) * 64
        return updated(line, {"data": {"sha256": digest, "batches": 1600, "prefixes": [[1, digest], [1024, digest]]}})

    said = dict(fairness(make(ordered)).facts)["Data and their order"]
    assert "All 7 trainings of seed 0 for recall read the same 1,600 batches in the same order (000000000000)." in said
    found = new(make(lambda line: ordered(line, "linear")), make(ordered))
    assert len(found) == 4 and all(doubt.text.count("linear read other batches") for doubt in found)
    stopped = {"sha256": "e" * 64, "batches": 1100, "prefixes": [[1, "0" * 64], [1024, "0" * 64]]}
    early = lambda line: line.measure == "training" and (line.layout, line.seed) == ("swa", 0)  # noqa: E731
    run = make(lambda line: updated(ordered(line), {"data": stopped}) if early(line) else ordered(line))
    assert not new(run, make(ordered)) and "as far as each went" in dict(fairness(run).facts)["Data and their order"]
    assert "not recorded" in dict(fairness(make()).facts)["Data and their order"]


def test_unequal_tuning_is_told(make: Callable[..., RunData]) -> None:
    def once(line: ResultLine) -> ResultLine:
        same = line.measure == "tuning" and line.layout == "swa"
        return updated(line, {"choice": {"learning_rate": 1e-3}}) if same else line

    (doubt,) = new(make(once), make())
    assert "swa 1; swa + fwpkm 3" in doubt.text and doubt.concerns("tuning")


def test_held_down_clocks_missing_cases_and_other_tools_are_told(
    make: Callable[..., RunData], made_up_run: Path, lines: list[ResultLine]
) -> None:
    start = {"started": "2026-01-02", "ended": "2026-01-03", "held_down": ["sw_power_cap"]}
    (doubt,) = new(make(finished=[start]), make())
    assert "held down (sw power cap)" in doubt.text and doubt.concerns("speed") and not doubt.concerns("recall")
    (doubt,) = new(make(foreign={"tool": "another bench", "file": "x", "sha256": "00"}), make())
    assert doubt.short == "measured by another bench"
    cases = [{"case": f"new{i}", "layout": "swa", "measure": "memory", "seed": 0, "what": ""} for i in range(2)]
    run = tabulate(made_up_run, {}, {}, list(map(Slimmer(), lines)), {"final": True, "cases": cases})
    (doubt,) = [doubt for doubt in doubts(run) if "missing" in doubt.short]
    assert doubt.text == "2 planned cases of memory have no result yet: swa." and doubt.concerns("memory")


def test_the_facts_of_a_run_are_told(made_up_run: Path) -> None:
    fair = fairness(read_run(made_up_run))
    facts = dict(fair.facts)
    assert "Example CPU <b>9000</b>, 2 cores, 25.8 GB of memory" in facts["Machine"]
    assert "with uncommitted changes" in facts["Commit"] and facts["Command"].startswith("mixerzoo run quick")
    assert fair.layouts is not None
    row = dict(zip(fair.layouts.columns, fair.layouts.rows[1]))
    assert row["Layout line"] == "sliding_window_attention(window=32) | fwpkm@1" and row["Choices tried"] == "3"
    assert "learning_rate = 0.002" in row["Trained with"] and row["Parameters"] == "161,000"
    assert row["Backends that ran"] == "attention: sdpa; fwpkm: torch" and row["Seeds trained"] == "0, 1, 2"
