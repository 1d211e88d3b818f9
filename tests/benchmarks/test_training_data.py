"""The hash of the data: the same for all that read the same in the same order, and for nobody else."""

import hashlib
import json

import pytest
import torch
from mixerzoo.benchmarks.measures import Training, Tuning
from mixerzoo.benchmarks.runs import same_data
from mixerzoo.benchmarks.tasks import MqarTask
from mixerzoo.benchmarks.training import TrainingSettings, train
from mixerzoo.benchmarks.training.data_hash import DataHash
from mixerzoo.models import LanguageModel, ModelConfig

CPU = torch.device("cpu")
EASY = MqarTask(n_pairs=1, n_keys=2, n_values=2, n_fillers=1)
SETTINGS = TrainingSettings(steps=6, batch=4, length=32)


def data_of(layout="softmax_attention(heads=2)", task=EASY, seed=0, settings=SETTINGS):
    model = LanguageModel(ModelConfig(layout, d_model=16, n_layers=1, seed=seed))
    return train(model, task, settings, seed=seed, device=CPU)["data"]


def test_layouts_that_read_the_same_show_the_same():
    data = data_of()
    assert data == data_of("gated_deltanet(heads=2)") == data_of(settings=SETTINGS.model_copy(update={"accumulate": 2}))
    assert (data["batches"], data["tokens"]) == (6, 6 * 4 * 32) and len(data["sha256"]) == 64
    assert data["sha256"] != data_of(seed=1)["sha256"] != data_of(task=EASY.model_copy(update={"n_keys": 3}))["sha256"]


def test_the_hash_is_a_chain_that_anybody_can_compute():
    value = hashlib.sha256()
    for step in range(6):
        batch, value = EASY.train_batch(step, 4, 32, 0), hashlib.sha256(value.digest())
        for tensor, dtype in ((batch.tokens, "<i8"), (batch.targets, "<i8"), (batch.documents, "|b1")):
            value.update(f"{dtype} (4, 32)".encode() + tensor.numpy().tobytes())
    assert data_of()["sha256"] == value.hexdigest()


def test_a_training_that_stopped_earlier_is_a_prefix_of_one_that_went_on():
    going_on = {"steps": 40, "batch": 4, "length": 32, "learning_rate": 2e-2}
    bar = {"accuracy": 0.2, "examples": 64, "every": 5}
    short = data_of(settings=TrainingSettings(**going_on, bar=bar))
    whole = data_of(settings=TrainingSettings(**going_on))
    assert 4 < short["batches"] < whole["batches"] == 40
    assert [n for n, _ in whole["prefixes"]] == [1, 2, 4, 8, 16, 32]
    common = [prefix for prefix in whole["prefixes"] if prefix[0] <= short["batches"]]
    assert short["prefixes"] == common and short["sha256"] != whole["sha256"]
    for data in (short, whole, json.loads(json.dumps(whole))):
        assert same_data(data, whole) is same_data(whole, data) is True
        assert same_data(data, data_of(seed=1)) is same_data(data_of(seed=1), data) is False
        assert same_data(data, None) is same_data(None, data) is None


@pytest.mark.parametrize("change", ["order", "target", "shape", "documents"])
def test_whatever_changes_what_a_model_learns_changes_the_hash(change):
    batches = [EASY.train_batch(step, 4, 32, 0) for step in (0, 1)]
    first, second = DataHash(), DataHash()
    changed = list(batches)
    if change == "order":
        changed.reverse()
    elif change == "target":
        changed[1] = changed[1].map(torch.clone)
        changed[1].targets[-1, -1] += 1
    elif change == "shape":
        changed[0] = changed[0].map(lambda tensor: tensor.view(2, 64))
    else:
        changed[0] = changed[0].map(torch.clone)
        changed[0].documents[0, 7] = True
    for ours, theirs in zip(batches, changed):
        first.add(ours)
        second.add(theirs)
    assert first.batches == second.batches and first.tokens == second.tokens and first.sha256 != second.sha256


@pytest.mark.parametrize("kind", [Training, Tuning])
def test_training_and_tuning_say_it_beside_their_record(tmp_path, kind):
    measure, config = kind(task=EASY, training=SETTINGS), ModelConfig("linear_attention(heads=2)", 16, 1)
    say = {"seed": 0, "device": CPU, "folder": tmp_path, "progress": lambda *_: None}
    first, again = (measure.run(config, **say) for _ in range(2))
    assert first["data"] == again["data"] == data_of() and "data" not in first["training"]
    assert first["training"] == again["training"]
