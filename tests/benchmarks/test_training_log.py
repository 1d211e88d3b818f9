"""The log of a training, the trackers beside it, and how the model is called while it trains."""

import json
import sys
import types

import pytest
import torch
from mixerzoo.benchmarks.tasks import MqarTask, NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, train, train_or_load
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.models import LanguageModel, ModelConfig, compiling

CPU = torch.device("cpu")
CONFIG = ModelConfig("softmax_attention(heads=2), gated_deltanet(heads=2)", d_model=16, n_layers=2)
EASY = MqarTask(n_pairs=1, n_keys=2, n_values=2, n_fillers=1)
SHORT = TrainingSettings(steps=6, batch=4, length=32)
WATCHED = TrainingSettings(steps=6, batch=4, length=32, save_every=2, bar={"examples": 4, "every": 3, "stop": False})


def run(folder, settings, progress=lambda *_: None):
    return train_or_load(CONFIG, EASY, settings, seed=0, device=CPU, folder=folder, progress=progress)[1]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_says_what_the_record_says_and_more(tmp_path):
    record = run(tmp_path, WATCHED)
    points = [line for line in lines(tmp_path) if "loss" in line]
    assert [[line["step"], line["loss"]] for line in points] == record["curve"]
    assert [line["learning_rate"] for line in points] == [WATCHED.rate_at(step) for step in range(6)]
    assert all(line["gradient_norm"] > 0 and line["tokens_per_second"] > 0 for line in points)
    assert points[-1]["tokens"] == record["tokens"]
    evaluations = [[line["step"], line["tokens"], line["accuracy"]] for line in lines(tmp_path) if "accuracy" in line]
    assert evaluations == record["evaluations"] and len(evaluations) == 2


def test_a_resumed_training_logs_no_step_twice(tmp_path):
    def interrupt(fraction, text):
        if fraction > 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, WATCHED, interrupt)
    assert lines(tmp_path)[-1]["step"] == 5
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    run(tmp_path, WATCHED)
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(tmp_path) if "accuracy" in line] == [3, 6]


def test_a_training_that_ends_early_logs_its_last_point_before_trackers_close(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "trackio", fake_tracker(calls))
    bar = {"accuracy": 0.01, "examples": 4, "every": 115}
    settings = TrainingSettings(steps=250, batch=4, length=16, learning_rate=1e-2, bar=bar, log_to=("trackio",))
    record = run(tmp_path, settings)
    assert record["steps"] == 115 and record["curve"][-2:][0][0] == 114 and record["curve"][-1][0] == 115
    assert lines(tmp_path)[-1]["step"] == 115 and "loss" in lines(tmp_path)[-1]
    assert calls[-1] == "finish" and len(calls) == len(lines(tmp_path)) + 2


def fake_tracker(calls):
    """A module that has what trackio and Weights & Biases share."""
    return types.SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finish"),
    )


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_is_told_every_line(name, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, name, fake_tracker(calls))
    run(tmp_path / "case" / "checkpoint", SHORT.model_copy(update={"log_to": (name,)}))
    (kind, options), *told, end = calls
    assert (kind, end) == ("init", "finish")
    assert (options["project"], options["name"]) == ("mixerzoo", "case-checkpoint")
    assert options["config"]["settings"]["steps"] == 6
    assert [{"step": step, **values} for step, values in told] == lines(tmp_path / "case" / "checkpoint")


def test_tensorboard_is_told_every_number(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, log_dir):
            calls.append(log_dir)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("close")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    run(tmp_path, SHORT.model_copy(update={"log_to": ("tensorboard",)}))
    assert (calls[0], calls[-1]) == (str(tmp_path), "close")
    expected = [(k, v, line["step"]) for line in lines(tmp_path) for k, v in line.items() if k != "step"]
    assert calls[1:-1] == expected


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_there_is_named_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    said = []
    with pytest.raises(ValueError, match=f"log_to names {name}, which is not installed; `pip install {name}`"):
        run(tmp_path, SHORT.model_copy(update={"log_to": (name,)}), lambda *args: said.append(args))
    assert not said and not list(tmp_path.iterdir())


def test_a_compiled_training_follows_the_same_curve(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")  # needs no C++ compiler
    config = ModelConfig("softmax_attention(heads=2)", d_model=16, n_layers=1)
    records = []
    with record_backends() as ran:
        for settings in (SHORT, SHORT.model_copy(update={"compile": "default"})):
            ran.clear()
            records.append(train(LanguageModel(config), EASY, settings, seed=0, device=CPU))
    torch._dynamo.reset()
    plain, compiled = ([loss for _, loss in record["curve"]] for record in records)
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert 0 < records[1]["compile_seconds"] < records[1]["seconds"] and records[1]["graph_breaks"] >= 0
    assert "compile_seconds" not in records[0] and ran["attention"]  # of code that tells nothing of it


def test_a_memory_that_a_call_changes_is_not_compiled():
    config = ModelConfig("fwpkm(n_subkeys=8, d_k=8, d_v=8, chunk_size=8, scope='persistent')", d_model=16, n_layers=1)
    with pytest.raises(
        ValueError, match=r"compile: default is not for layers\.0\.mixer, which a call changes; take off"
    ):
        train(LanguageModel(config), EASY, SHORT.model_copy(update={"compile": "default"}), seed=0, device=CPU)


def test_window_dropout_narrows_the_drawn_steps_and_no_evaluation():
    model = LanguageModel(CONFIG)
    attention = model.layers[0].mixer
    attention.train_window = None
    seen = []
    attention.register_forward_hook(lambda m, args, out: seen.append((m.train_window, torch.is_grad_enabled())))
    settings = WATCHED.model_copy(update={"steps": 12, "window_dropout": 0.5, "dropout_window": 9})
    train(model, EASY, settings, seed=0, device=CPU)
    drawn = [settings.plan(step, 0).windowed for step in range(12)]
    assert [window for window, training in seen if training] == [9 if windowed else None for windowed in drawn]
    assert set(drawn) == {True, False}
    evaluated = [window for window, training in seen if not training]
    assert evaluated and set(evaluated) == {None}
    assert attention.train_window is None


def test_activations_are_checkpointed_in_training_only():
    model = LanguageModel(CONFIG)
    model.checkpoint_activations = False
    seen = []
    settings = SHORT.model_copy(update={"checkpoint_activations": True})

    def look(fraction, text):
        seen.append(model.checkpoint_activations)

    record = train(model, NeedleTask(n_needles=2), settings, seed=0, device=CPU, progress=look)
    assert seen == [True] * 6 and model.checkpoint_activations is False
    plain = train(LanguageModel(CONFIG), NeedleTask(n_needles=2), SHORT, seed=0, device=CPU)
    assert [loss for _, loss in record["curve"]] == pytest.approx([loss for _, loss in plain["curve"]], rel=1e-5)
