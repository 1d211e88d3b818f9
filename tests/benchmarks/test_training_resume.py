"""A training that was killed goes on, and ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run
from mixerzoo.benchmarks.suite import parse_suite
from mixerzoo.benchmarks.tasks import NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, train_or_load
from mixerzoo.models import ModelConfig

CPU = torch.device("cpu")
LAYOUT = "softmax_attention(heads=2), gated_deltanet(heads=2) | fwpkm(n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@1"
CONFIG = ModelConfig(LAYOUT, d_model=16, n_layers=2)
TASK = NeedleTask(n_needles=2)
MIX = [{"share": 0.5, "mix": [{"length": 24}, {"length": 48, "load": 4}]}, {"share": 0.5, "mix": [{"length": 32}]}]
SETTINGS = TrainingSettings(
    steps=24,
    batch=4,
    length=32,
    curriculum=MIX,
    optimizer="muon",
    accumulate=2,
    bar={"examples": 4, "every": 5, "stop": False},
    save_every=7,
)
SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from mixerzoo.benchmarks.training import train_or_load
from test_training_resume import CONFIG, CPU, SETTINGS, TASK

def progress(fraction, text):
    if fraction >= {until} / SETTINGS.steps:
        os.kill(os.getpid(), signal.SIGKILL)

train_or_load(CONFIG, TASK, SETTINGS, seed=3, device=CPU, folder=Path(sys.argv[1]), progress=progress)
"""


RUN = """
name: resumed
model: {preset: nano, d_model: 16, n_layers: 2, d_ff: 16, vocab_size: 449}
layouts:
  both: softmax_attention(heads=2), gated_deltanet(heads=2) | fwpkm(n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@1
measures:
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 128}
    training: {steps: 60, batch: 4, length: 32, optimizer: muon, save_every: 8}
    lengths: [32]
    examples: 2
"""
RUNNER = """
import sys
sys.path.insert(0, {tests!r})
from test_training_resume import run_suite
if __name__ == "__main__":
    run_suite(sys.argv[1])
"""


def run_suite(folder, ends=("ok", "ok"), **options):
    """Run the suite in this process, as `mixerzoo run` does; returns the results of its training and its recall."""
    # two at a time, though there is one: each has one thread of two cores, as two are slow where others are at work
    suite, limits = parse_suite(RUN, "resumed.yaml"), Limits(jobs=2)
    executor = LocalExecutor(limits, "cpu")
    run, options = Run(folder), {"device": "cpu", **options}
    execute(Planner(suite, "cpu"), run, suite.resolved(), limits, Reporter(), executor, **options)
    results = run.results()
    assert tuple(r.status for r in results) == ends, [r.error for r in results]
    return results


def finish(folder, settings=SETTINGS, config=CONFIG):
    """The model, its record without what a clock says, and the steps that were made."""
    said = []
    model, record = train_or_load(
        config, TASK, settings, seed=3, device=CPU, folder=folder, progress=lambda *args: said.append(args[1])
    )
    assert record.pop("seconds") > 0
    return model, record, len(said)


def kill_after(steps, folder):
    """Train in a process of its own that is killed after `steps` steps."""
    script = SCRIPT.format(tests=os.path.dirname(__file__), until=steps)
    command = [sys.executable, "-c", script, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_training_ends_as_if_nothing_had_been(tmp_path):
    whole, record, steps = finish(tmp_path / "whole")
    assert steps == 24
    kill_after(11, tmp_path / "killed")  # after a save at 7, an evaluation at 10
    kill_after(16, tmp_path / "killed")  # resumed once, and killed again
    resumed, again, steps = finish(tmp_path / "killed")
    assert steps == 10  # from 14 on
    assert (record.pop("resumed_at"), again.pop("resumed_at")) == ([], [7, 14])
    assert again == record and not record["warnings"] and len(record["curve"]) == 24 and len(record["evaluations"]) == 5
    assert record["data"]["batches"] == 24 and record["data"]["tokens"] == record["tokens"]
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_case_whose_runner_was_killed_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER.format(tests=os.path.dirname(__file__)))
    runner = subprocess.Popen([sys.executable, tmp_path / "runner.py", tmp_path / "killed"])
    (checkpoint,) = wait_for(lambda: list((tmp_path / "killed").glob("checkpoints/*/*/resume.sha256")), runner)
    runner.kill()
    assert runner.wait() == -signal.SIGKILL
    assert Run(tmp_path / "killed").results() == [] and not (checkpoint.parent / "model.safetensors").exists()
    killed, whole = (run_suite(tmp_path / name)[0].metrics for name in ("killed", "whole"))
    (step,) = killed["training"].pop("resumed_at")
    assert 8 <= step < 60 and whole["training"].pop("resumed_at") == []
    assert killed["training"].pop("seconds") > 0 and whole["training"].pop("seconds") > 0
    assert killed == whole and killed["data"]["batches"] == 60
    ours, theirs = (next((tmp_path / name).glob("checkpoints/*/*/model.safetensors")) for name in ("killed", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    # a damaged model: what asks it says which command trains it again, and it does
    ours.write_bytes(b"\0" * 1000)
    lines = (tmp_path / "killed" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "killed" / "results.jsonl").write_bytes(lines[0])
    _, asking = run_suite(tmp_path / "killed", ("ok", "invalid"))
    assert "model.safetensors is corrupt" in asking.error and "suite.yaml --out" in asking.error
    assert "--retry-failed` trains it again" in asking.error
    again, _ = run_suite(tmp_path / "killed", retry_failed=True)
    assert again.metrics["training"]["curve"] == whole["training"]["curve"]
    assert "model.safetensors is corrupt" in again.metrics["training"]["warnings"][0]
    assert ours.read_bytes() == theirs.read_bytes()


def wait_for(found, process):
    """What `found` gives once it gives something."""
    while not (value := found()):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    return value


def test_what_a_training_resumes_from_goes_with_its_end(tmp_path):
    finish(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "training.json",
    ]


def test_an_unfinished_training_of_another_recipe_is_not_resumed(tmp_path):
    def interrupt(fraction, text):
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_or_load(CONFIG, TASK, SETTINGS, seed=3, device=CPU, folder=tmp_path, progress=interrupt)
    assert (tmp_path / "resume-7.safetensors").is_file()
    other = SETTINGS.model_copy(update={"learning_rate": 1e-4})
    assert finish(tmp_path, other)[2] == 24


def test_how_often_it_is_saved_does_not_make_another_recipe(tmp_path):
    finish(tmp_path)
    assert finish(tmp_path, SETTINGS.model_copy(update={"save_every": 2}))[2] == 1  # "trained already"
    assert json.loads((tmp_path / "training.json").read_text())["training"]["steps"] == 24
