import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mixerzoo.benchmarks.runs import RunError
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import read_run
from mixerzoo.reports.verdict import findings, headline_recall, training_statement

MakeRun = Callable[..., Path]


def edit_lines(run: Path, change: Callable[[dict], None]) -> Path:
    """Change the result lines of a run folder in place."""
    results = run / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        change(line)
    results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def finding(run: Path, topic: str):
    return next(f for f in findings(read_run(run)) if f.topic.startswith(topic))


def test_tables_hold_every_result_in_the_order_of_the_suite(made_up_run: Path) -> None:
    run = read_run(made_up_run)
    assert run.layouts[:3] == ["swa", "swa + fwpkm", "softmax"] and len(run.layouts) == 7
    assert len(run.recall) == 7 * 2 * 6 * 5  # layouts, seeds, lengths, four depths and the recent needles
    assert len(run.speed) == 7 * 6 * 4 - 1 and len(run.memory) == 7 * 6 * 2
    assert set(run.recall["trained_on"]) == {256}
    assert set(run.speed["mode"]) == {"forward", "train", "prefill", "decode"}
    assert run.recall["backends"].iloc[0] == "attention: sdpa"
    assert not len(run.missing)


def test_summary_equals_numbers_computed_by_hand(made_up_run: Path) -> None:
    numbers = summary(read_run(made_up_run)).query("layout == 'swa + fwpkm'")
    correct = total = 0
    tokens_per_second = {}
    for line in map(json.loads, (made_up_run / "results.jsonl").read_text(encoding="utf-8").splitlines()):
        if line["layout"] != "swa + fwpkm":
            continue
        if line["measure"] == "recall":
            rows = [r for r in line["metrics"]["rows"] if r["length"] == 8192 and not r["recent"]]
            correct += sum(r["correct"] for r in rows)
            total += sum(r["total"] for r in rows)
        if line["measure"] == "speed":
            parameters = line["parameters"]
            tokens_per_second[parameters["modes"][0], parameters["lengths"][0]] = line["metrics"]["tokens_per_second"]
    accuracy = numbers.query("quantity == 'accuracy' and length == 8192").iloc[0]
    assert total == 1280 and accuracy["value"] == correct / total and accuracy["seeds"] == 2
    speed = numbers.query("quantity == 'tokens_per_second' and mode == 'train' and length == 512").iloc[0]
    expected = tokens_per_second["train", 512]
    assert (speed["value"], speed["low"], speed["high"]) == (expected["median"], expected["q1"], expected["q3"])
    assert speed["backends"] == "attention: sdpa; fwpkm: torch"
    state = numbers.query("quantity == 'state_bytes' and mode == 'forward' and length == 8192").iloc[0]
    assert state["value"] == 60_000 + 40 * 4096


def test_recent_needles_are_left_out_of_the_headline(made_up_run: Path) -> None:
    recall = read_run(made_up_run).recall
    assert recall["recent"].sum() == 7 * 2 * 6
    assert not headline_recall(recall)["recent"].any()


def test_state_is_of_one_sequence_though_measured_on_a_batch(make_run: MakeRun) -> None:
    def batched(line: dict) -> None:
        line["parameters"]["batch"] = 4

    run = edit_lines(make_run(lambda line: line.measure == "memory"), batched)
    states = read_run(run).states.set_index(["layout", "length"])["state_bytes"]
    assert states["softmax", 256] == 256 * 1024 / 4


def test_settings_that_differ_are_told_apart_and_never_pooled(make_run: MakeRun) -> None:
    def other_task(line: dict) -> None:
        if line["seed"] == 1:
            line["parameters"]["task"] = {"task": "mqar"}

    run = edit_lines(make_run(lambda line: line.measure == "recall"), other_task)
    table = read_run(run).recall
    assert len(table["variant"].unique()) == 2
    assert all("task.task = " in variant for variant in table["variant"])
    assert len([f for f in findings(read_run(run)) if f.topic.startswith("Recall at")]) == 2


def test_failures_keep_their_status_and_error(made_up_run: Path) -> None:
    failures = read_run(made_up_run).failures.set_index("status")
    assert set(failures.index) == {"out_of_memory", "not_finite", "timeout", "crashed", "invalid"}
    assert failures.loc["out_of_memory", "what"] == "train, 8,192 tokens"
    assert "**stars**" in failures.loc["not_finite", "error"]


def test_missing_cases_are_counted_by_layout_measure_and_seed(make_run: MakeRun) -> None:
    run = make_run(lambda line: not (line.measure == "speed" and line.parameters["lengths"] == [512]))
    missing = read_run(run).missing
    assert set(missing["measure"]) == {"speed"} and len(missing) == 7
    assert set(missing["expected"] - missing["found"]) == {4}


def test_an_empty_run_gives_empty_tables(make_run: MakeRun) -> None:
    run = read_run(make_run(lambda line: False))
    assert findings(run) == [] and training_statement(run) == [] and not len(summary(run))
    assert run.missing["expected"].sum() == 7 * 2 + 7 * 24 + 7 * 12 + 7


def test_a_folder_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="mixerzoo run"):
        read_run(tmp_path)


def test_metrics_of_an_unknown_form_are_an_error_not_a_crash(make_run: MakeRun) -> None:
    def strip(line: dict) -> None:
        line["metrics"].pop("tokens_per_second", None)

    run = edit_lines(make_run(lambda line: line.measure == "speed" and line.status == "ok"), strip)
    with pytest.raises(RunError, match="tokens_per_second"):
        read_run(run)


# --- The verdict ---


def test_a_winner_needs_an_interval_clear_of_all_others(made_up_run: Path) -> None:
    best = finding(made_up_run, "Recall at")
    assert best.winner == "swa + fwpkm" and best.value == "88.4 % [86.6, 90.1]"
    assert best.topic == "Recall at 8,192 tokens, 32 times the training length"
    assert "Not above chance (1.6 %): swa." in best.sentence and "2 seeds (0 and 1)" in best.sentence


def test_overlapping_intervals_have_no_winner(make_run: MakeRun) -> None:
    def equalise(line: dict) -> None:
        for row in line["metrics"]["rows"]:
            row["correct"] = min(row["total"], 90 + len(line["layout"]) % 3)

    best = finding(edit_lines(make_run(lambda line: line.measure == "recall"), equalise), "Recall at")
    assert best.winner is None and "not separable" in best.sentence


def test_one_seed_is_said_to_be_one(make_run: MakeRun) -> None:
    best = finding(make_run(lambda line: line.measure == "recall" and line.seed == 0), "Recall at")
    assert "One seed (0)" in best.sentence


def test_speed_is_compared_where_all_have_a_result_and_failures_are_named(made_up_run: Path) -> None:
    best = finding(made_up_run, "Fastest training step")
    assert best.topic == "Fastest training step at 4,096 tokens" and best.winner == "swa"
    assert "times [" in best.sentence and "Failed: softmax (8,192 tokens: out of memory)." in best.sentence
    assert "Failed" not in finding(made_up_run, "Fastest decoding").sentence


def test_quartiles_that_overlap_have_no_winner(make_run: MakeRun) -> None:
    def widen(line: dict) -> None:
        rates = line["metrics"]["tokens_per_second"]
        rates["q1"], rates["q3"] = rates["median"] / 20, rates["median"] * 20

    run = edit_lines(make_run(lambda line: line.measure == "speed" and line.status == "ok"), widen)
    assert all(f.winner is None for f in findings(read_run(run)))


def test_smallest_state_and_peak_memory(made_up_run: Path) -> None:
    assert finding(made_up_run, "Smallest state").winner == "swa"
    peak = finding(made_up_run, "Least peak memory, training step")
    assert (peak.winner, peak.value) == ("linear", "115 MB") and "last softmax" in peak.sentence


def test_equal_bits_per_byte_have_no_winner(made_up_run: Path) -> None:
    best = finding(made_up_run, "Best bits per byte")
    assert best.winner is None and "swa + fwpkm (2.235 bits per byte) and softmax" in best.sentence
    assert "One seed" in best.sentence and "Failed: ttt_linear (not finite)." in best.sentence


def test_what_was_trained_at_which_length_is_said(made_up_run: Path) -> None:
    recall, perplexity = training_statement(read_run(made_up_run))
    assert "trained on sequences of 256 tokens for 1,600 steps" in recall and "256 to 8,192 tokens" in recall
    assert perplexity.startswith("For perplexity")
