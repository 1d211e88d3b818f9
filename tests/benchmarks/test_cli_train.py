"""The command `mixerzoo train`, alone and under torchrun."""

import json
import os
import subprocess
import sys

import pytest
from mixerzoo.benchmarks import cli
from mixerzoo.benchmarks.cli_train import record_table
from mixerzoo.models import LanguageModel
from rich.console import Console

FILE = """\
model:
  preset: nano
  d_model: 16
  layout: sliding_window_attention
task: {task: mqar, n_pairs: 1, n_keys: 2, n_values: 2, n_fillers: 1}
training:
  steps: 100
  batch: 16
  length: 16
  learning_rate: 2e-2
  bar: {examples: 16}
seed: 2
"""


@pytest.fixture
def mixerzoo(capsys, monkeypatch):
    """Runs a command line in this process; returns exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(FILE)
    return path


def changed(file, *changes):
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file


def test_it_trains_and_says_what_came_of_it(mixerzoo, file, tmp_path):
    code, out, err = mixerzoo("train", file, "--out", tmp_path / "out", "--device", "cpu")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "out" / "training.json").read_text())["training"]
    assert record["bar"]["passed"] and record["steps"] < 100
    for said in (
        "training: step 1/100",
        f"{record['curve'][-1][1]:.4f} nats",
        f"{record['steps']}, {record['tokens']:,}",
        f"tokens to solve │ {record['tokens_to_solve']:,}",
        f"taught: {record['bar']['reached']:.1%} right at 16 tokens, load 1; the bar is 95.0%",
        str(tmp_path / "out"),
    ):
        assert said in out
    assert LanguageModel.load(tmp_path / "out").config.seed == 2
    code, out, _ = mixerzoo("train", file, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0 and "trained already" in out


def test_what_was_not_taught_is_called_so():
    bar = {"accuracy": 0.95, "length": 256, "load": None, "reached": 0.5, "passed": False}
    record = {"curve": [[1, 2.5]], "steps": 10, "tokens": 81920, "seconds": 1.0, "tokens_to_solve": None, "bar": bar}
    console = Console(width=120)
    with console.capture() as captured:
        console.print(record_table(record))
    assert "not taught in 81,920 tokens: 50.0% right at 256 tokens; the bar is 95.0%" in captured.get()
    assert "tokens to solve │ - " in captured.get()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("steps: 100", "steps: 0")], "7: training.steps: input should be greater than or equal to 1, got 0"),
        ([("  batch", "  batches")], "8: training.batches: unknown setting"),
        ([("seed", "sed")], "12: sed: unknown setting; did you mean seed?"),
        ([("sliding_window_attention", "sliding")], "4: model.layout: unknown mixer 'sliding'"),
        ([("nano", "giant")], "unknown preset 'giant'"),
        ([("length: 16", "length: 3")], "needs length >= 4, got 3"),
        ([("n_values: 2", "n_values: 900")], "5: task: the tasks use 903 token ids, the model has vocab_size 512"),
        ([("n_pairs: 1", "n_pairs: 3")], "5: task.mqar: n_keys and n_values must be at least n_pairs=3"),
        ([("bar: {examples: 16}", "curriculum: [{share: 0.5, mix: [{length: 16}]}]")], "must sum to 1, got 0.5"),
    ],
)
def test_a_mistake_is_pointed_at_before_any_work(changes, message, mixerzoo, file, tmp_path):
    code, out, err = mixerzoo("train", changed(file, *changes), "--out", tmp_path / "out", "--device", "cpu")
    assert (code, out) == (2, "")
    assert message in err and f"{file}:" in err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(mixerzoo, tmp_path):
    code, _, err = mixerzoo("train", tmp_path / "none.yaml")
    assert code == 2 and "give a YAML file with model, task and training" in err


def test_two_processes_make_one_model(file, tmp_path):
    changed(file, ("steps: 100", "steps: 4\n  parallel: ddp"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mixerzoo.benchmarks.cli", "train", str(file), "--out", str(tmp_path / "out"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss at the end") == 1 and done.stdout.count("training: step 4/4") == 1
    assert json.loads((tmp_path / "out" / "training.json").read_text())["training"]["steps"] == 4


def test_several_processes_need_a_folder_and_a_way(mixerzoo, file, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    code, _, err = mixerzoo("train", file)
    assert code == 2 and "several processes need one folder: give --out FOLDER" in err
