import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runs import ResultLine, RunError
from mixerzoo.reports import write_report
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import read_run
from mixerzoo.reports.trainings import trained_sizes
from mixerzoo.reports.verdict import findings, training_statement

from .conftest import LAYOUTS, made_up_lines, write_run

MakeRun = Callable[..., Path]


def edit_lines(run: Path, change: Callable[[dict], None]) -> Path:
    """Change the result lines of a run folder in place."""
    results = run / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        change(line)
    results.write_bytes(b"".join(map(encode_line, lines)))
    return run


def finding(run: Path, topic: str):
    return next(f for f in findings(read_run(run)) if f.topic.startswith(topic))


def test_tables_hold_every_result_in_the_order_of_the_suite(made_up_run: Path) -> None:
    run = read_run(made_up_run)
    assert run.layouts[:3] == ["swa", "swa + fwpkm", "softmax"] and len(run.layouts) == 7
    models = sum(layout.taught for layout in LAYOUTS.values())
    assert len(run["answers"]) == (models * 6 - 3) * 7  # lengths, and seven ways to ask at each
    assert len(run["failed_lengths"]) == 3 and set(run["failed_lengths"]["status"]) == {"out_of_memory"}
    assert len(run["training"]) == 7 * 3 + 7 and set(run["training"]["measure"]) == {"recall", "perplexity"}
    assert len(run["tuning"]) == 7 * 5 and set(run["tuning"]["rung"]) == {0, 1}
    assert len(run["speed"]) == 7 * 6 * 4 - 1 and len(run["memory"]) == 7 * 6 * 2
    assert set(run["speed"]["mode"]) == {"forward", "train", "prefill", "decode"}
    assert run["recall"]["backends"].iloc[0] == "attention: sdpa; fwpkm: torch"
    assert set(run["recall"]["variant"]) == {""} and not len(run["missing"])


def test_what_was_trained_is_read_from_the_curriculum_or_the_one_length(made_up_run: Path) -> None:
    training = read_run(made_up_run)["training"]
    recall = training[training["measure"] == "recall"].iloc[0]
    assert (recall["lengths"], recall["loads"]) == ([64, 128, 256], [4, 8, 16])
    plain = {"task": {"task": "needle", "n_needles": 8}, "training": {"length": 512, "curriculum": None}}
    assert trained_sizes(plain) == ([512], [8])


def test_summary_equals_numbers_computed_by_hand(made_up_run: Path) -> None:
    numbers = summary(read_run(made_up_run)).query("layout == 'swa + fwpkm'")
    shares, tokens_per_second = [], {}
    for line in map(json.loads, (made_up_run / "results.jsonl").read_text(encoding="utf-8").splitlines()):
        parameters = line["parameters"]
        if line["layout"] != "swa + fwpkm":
            continue
        if line["measure"] == "recall" and parameters["lengths"] == [8192]:
            plain = {"load": 64, "passes": 1, "memory": "fresh"}
            rows = [r for r in line["metrics"]["rows"] if plain.items() <= r.items() and not r["recent"]]
            shares.append(sum(r["correct"] for r in rows) / sum(r["total"] for r in rows))
        if line["measure"] == "speed":
            tokens_per_second[parameters["modes"][0], parameters["lengths"][0]] = line["metrics"]["tokens_per_second"]
    cell = "quantity == 'accuracy' and length == 8192 and load == 64 and passes == 1"
    accuracy = numbers.query(cell).iloc[0]
    assert accuracy["value"] == pytest.approx(sum(shares) / 3) and accuracy["seeds"] == 3
    assert accuracy["low"] <= min(shares) and accuracy["interval"] == "95 %, new seeds"
    assert accuracy["count"] == 3 * (6 * 64 - 1)  # but for the recent one
    speed = numbers.query("quantity == 'tokens_per_second' and mode == 'train' and length == 512").iloc[0]
    expected = tokens_per_second["train", 512]
    assert (speed["value"], speed["low"], speed["high"]) == (expected["median"], expected["q1"], expected["q3"])
    assert speed["backends"] == "attention: sdpa; fwpkm: torch"
    state = numbers.query("quantity == 'state_bytes' and mode == 'forward' and length == 8192").iloc[0]
    assert state["value"] == 60_000 + 40 * 4096
    solve = numbers.query("quantity == 'tokens_to_solve'").iloc[0]
    assert (solve["value"], solve["count"], solve["seeds"]) == (3_900_000, 3, 3)


def test_state_is_of_one_sequence_though_measured_on_a_batch(make_run: MakeRun) -> None:
    def batched(line: dict) -> None:
        line["parameters"]["batch"] = 4

    run = edit_lines(make_run(lambda line: line.measure == "memory"), batched)
    states = read_run(run)["states"].set_index(["layout", "length"])["state_bytes"]
    assert states["softmax", 256] == 256 * 1024 / 4


def test_settings_that_differ_are_told_apart_and_never_pooled(make_run: MakeRun) -> None:
    def other_task(line: dict) -> None:
        if line["seed"] == 1:
            line["parameters"]["task"] = {"task": "mqar"}

    run = edit_lines(make_run(lambda line: line.measure in ("training", "recall")), other_task)
    table = read_run(run)["recall"]
    assert set(table["variant"]) == {"needle", "mqar"}
    assert len([f for f in findings(read_run(run)) if f.topic.startswith("Recall")]) == 2


def test_long_settings_that_differ_are_told_apart_in_few_words(make_run: MakeRun) -> None:
    def other_end(line: dict) -> None:
        if line["seed"] == 1 and "curriculum" in line["parameters"].get("training", {}):
            line["parameters"]["training"]["curriculum"][-1]["mix"][0]["load"] = 32

    run = read_run(edit_lines(make_run(lambda line: line.measure in ("training", "recall")), other_end))
    variants = set(run["recall"]["variant"])
    assert len(variants) == 2 and all(len(v) < 80 and v.startswith("training.curriculum = [") for v in variants)


def test_what_tuning_chose_does_not_tell_layouts_apart(make_run: MakeRun) -> None:
    def chosen(line: dict) -> None:
        if line["layout"] == "softmax":
            line["parameters"]["training"]["learning_rate"] = 1e-3

    run = read_run(edit_lines(make_run(lambda line: line.measure in ("training", "recall")), chosen))
    assert set(run["recall"]["variant"]) == {""} and "softmax" in set(run["recall"]["layout"])


def test_failures_keep_their_status_and_error(made_up_run: Path) -> None:
    failures = read_run(made_up_run)["failures"].set_index("status")
    assert set(failures.index) == {"out_of_memory", "not_finite", "timeout", "crashed", "invalid"}
    assert set(failures.loc["out_of_memory", "what"]) == {"train, 8,192 tokens", "8,192 tokens"}
    assert "**stars**" in failures.loc["not_finite", "error"]


def test_a_failed_training_is_named_as_the_plan_names_it(make_run: MakeRun) -> None:
    def fail(line: dict) -> None:
        line |= {"status": "timeout", "metrics": None, "error": "late"}

    kept = lambda line: line.measure == "training" and line.layout == "softmax"  # noqa: E731
    folder = edit_lines(make_run(kept), fail)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    for case in plan["cases"]:
        case["what"] = f"{case['measure']} of {case['layout']}"
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert set(read_run(folder)["failures"]["what"]) == {"training of softmax"}


def test_missing_cases_are_the_plan_minus_the_results(make_run: MakeRun) -> None:
    run = make_run(lambda line: not (line.measure == "speed" and line.parameters["lengths"] == [512]))
    missing = read_run(run)["missing"]
    assert set(missing["measure"]) == {"speed"} and len(missing) == 7
    assert set(missing["expected"] - missing["found"]) == {4}


def test_an_empty_run_gives_empty_tables(make_run: MakeRun) -> None:
    run = read_run(make_run(lambda line: False))
    assert findings(run) == [] and training_statement(run) == [] and not len(summary(run))
    assert run["missing"]["expected"].sum() == len(list(made_up_lines()))


def test_a_run_without_a_plan_says_so_and_one_that_grows_too(make_run: MakeRun) -> None:
    folder = make_run(lambda line: line.measure == "memory")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    (folder / "plan.json").write_text(json.dumps({**plan, "final": False}), encoding="utf-8")
    assert "Not all cases are known yet" in write_report(folder).read_text(encoding="utf-8")
    (folder / "plan.json").unlink()
    page = write_report(folder).read_text(encoding="utf-8")
    assert "This run kept no plan" in page and "Every planned case" not in page and "Planned cases" not in page


def test_a_plan_that_is_none_is_an_error(make_run: MakeRun) -> None:
    folder = make_run(lambda line: False)
    (folder / "plan.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(RunError, match="is not a plan"):
        read_run(folder)


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


def test_speed_is_compared_where_all_have_a_result_and_failures_are_named(made_up_run: Path) -> None:
    best = finding(made_up_run, "Fastest training step")
    assert best.topic == "Fastest training step at 4,096 tokens" and best.winner == "swa"
    assert "times [" in best.sentence and "Failed: softmax (8,192 tokens: out of memory)." in best.sentence
    assert "Failed" not in finding(made_up_run, "Fastest decoding").sentence


def test_rounds_that_do_not_tell_layouts_apart_have_no_winner(make_run: MakeRun) -> None:
    def equalise(line: dict) -> None:
        shift = len(line["layout"]) % 5  # other orders of the same rounds
        rounds = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
        line["metrics"]["samples"] = rounds[shift:] + rounds[:shift]

    run = edit_lines(make_run(lambda line: line.measure == "speed" and line.status == "ok"), equalise)
    found = findings(read_run(run))
    assert len(found) == 4 and all(f.winner is None and "leave it open" in f.sentence for f in found)


def test_few_rounds_tell_nothing(make_run: MakeRun) -> None:
    def shorten(line: dict) -> None:
        line["metrics"]["samples"] = line["metrics"]["samples"][:3]

    run = edit_lines(make_run(lambda line: line.measure == "speed" and line.status == "ok"), shorten)
    assert all("fewer than 5 rounds tell nothing" in f.sentence for f in findings(read_run(run)))


def test_smallest_state_and_peak_memory(made_up_run: Path) -> None:
    assert finding(made_up_run, "Smallest state").winner == "swa"
    peak = finding(made_up_run, "Least peak memory, training step")
    assert (peak.winner, peak.value) == ("linear", "115 MB") and "last softmax" in peak.sentence


# --- Perplexity ---


def three_seeds(bits: Callable[[str, int], float], last: float = 1.5) -> list[ResultLine]:
    """Perplexity of two layouts with three seeds; last: the loss at the end of training, after 1.5 before it."""
    lines = [line for line in made_up_lines() if line.layout in ("swa", "softmax") and line.seed == 0]
    kept = [line for line in lines if line.parameters.get("task") == {"task": "text"}]
    found = []
    for seed, line in product(range(3), kept):
        metrics = json.loads(json.dumps(line.metrics))
        if line.measure == "training":
            metrics["training"]["curve"] = [[step, 1.5 if step <= 90 else last] for step in range(1, 101)]
        else:
            metrics["rows"] = [{**r, "nats": bits(line.layout, seed) * math.log(2)} for r in metrics["rows"]]
        found.append(line.model_copy(update={"seed": seed, "case": f"{line.case}-{seed}", "metrics": metrics}))
    return found


def test_bits_of_one_seed_have_no_best(made_up_run: Path) -> None:
    best = finding(made_up_run, "Bits per byte")
    assert best.winner is None and best.open == "cannot tell: too few seeds"
    assert "No layout is called best from fewer than 3 seeds." in best.sentence
    assert "Failed: ttt_linear (4,096 tokens: not finite)." in best.sentence


def test_three_seeds_that_agree_have_a_best(tmp_path: Path) -> None:
    bits = lambda layout, seed: (2.0 if layout == "swa" else 2.1) + 0.001 * seed * len(layout)  # noqa: E731
    best = finding(write_run(tmp_path / "run", three_seeds(bits)), "Bits per byte")
    assert best.winner == "swa" and "swa has 2.003 bits per byte (3 seeds, 2.000 to 2.006)" in best.sentence


def test_bits_of_tokens_are_said_of_bytes(tmp_path: Path) -> None:
    bits = lambda layout, seed: (6.0 if layout == "swa" else 6.3) + 0.003 * seed * len(layout)  # noqa: E731
    lines = three_seeds(bits)
    for line in lines:
        if line.measure == "perplexity" and line.metrics is not None:
            line.metrics["text"] = {**line.metrics["text"], "bytes_per_token": 3.0}
    best = finding(write_run(tmp_path / "run", lines), "Bits per byte")
    assert "swa has 2.003 bits per byte (3 seeds, 2.000 to 2.006)" in best.sentence


def test_seeds_that_disagree_have_none(tmp_path: Path) -> None:
    bits = lambda layout, seed: 2.0 + (0.1 * seed if layout == "swa" else 0.09)  # noqa: E731
    best = finding(write_run(tmp_path / "run", three_seeds(bits)), "Bits per byte")
    assert best.winner is None and "Cannot tell softmax and swa apart" in best.sentence


def test_a_loss_that_still_falls_has_no_best(tmp_path: Path) -> None:
    bits = lambda layout, seed: (2.0 if layout == "swa" else 2.1) + 0.001 * seed * len(layout)  # noqa: E731
    best = finding(write_run(tmp_path / "run", three_seeds(bits, last=1.4)), "Bits per byte")
    assert best.winner is None and "the loss of swa and softmax was still falling by more than 2%" in best.sentence


def test_what_was_trained_is_said(made_up_run: Path) -> None:
    recall, perplexity = training_statement(read_run(made_up_run))
    assert "trained on sequences of 64 to 256 tokens with a load of 4 to 16" in recall
    assert "asked at 256 to 8,192 tokens. 3 seeds (0, 1 and 2)." in recall
    assert perplexity.startswith("For perplexity") and "not for the layout" in perplexity
