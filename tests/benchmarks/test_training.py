"""The training loop: the same data and the same result for a seed, a schedule as documented, and loud failures."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from mixerzoo.benchmarks.errors import NotFiniteError
from mixerzoo.benchmarks.tasks import MqarTask, NeedleTask, TextTask
from mixerzoo.benchmarks.training import TrainingSettings, batch_loss, make_optimizer, train, train_or_load
from mixerzoo.models import LanguageModel, ModelConfig
from torch.nn import functional as F

CPU = torch.device("cpu")
CONFIG = ModelConfig("softmax_attention(heads=2)", d_model=16, n_layers=1)
EASY = MqarTask(n_pairs=1, n_keys=2, n_values=2, n_fillers=1)  # half of it can be guessed: the loss must fall at once
SHORT = TrainingSettings(steps=6, batch=4, length=32)


def test_the_loss_falls_and_the_curve_says_so():
    settings = TrainingSettings(steps=30, batch=8, length=16, learning_rate=1e-2)
    said = []
    model = LanguageModel(CONFIG)
    result = train(model, EASY, settings, seed=0, device=CPU, progress=lambda *args: said.append(args))
    assert (result["steps"], result["tokens"]) == (30, 30 * 8 * 16)
    assert [step for step, _ in result["curve"]] == list(range(1, 31))
    assert result["curve"][0][1] == pytest.approx(math.log(512), rel=0.1)
    assert result["curve"][-1][1] < 3.0
    assert [fraction for fraction, _ in said] == pytest.approx([(i + 1) / 30 for i in range(30)])
    assert str(said[-1][1]) == f"training: step 30/30, loss {result['curve'][-1][1]:.3f}"
    assert not model.training


def test_a_seed_decides_everything():
    def curve(seed):
        return train(LanguageModel(CONFIG), EASY, SHORT, seed=seed, device=CPU)["curve"]

    assert curve(0) == curve(0)
    assert curve(0) != curve(1)


@pytest.mark.parametrize("task", [NeedleTask(n_needles=2), TextTask()], ids=repr)
def test_loss_is_the_cross_entropy_of_the_scored_positions(task):
    model = LanguageModel(CONFIG)
    batch = task.train_batch(0, 3, 40, seed=0)
    logits, _ = model(batch.tokens)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(batch_loss(model, batch, CPU), expected)


def test_learning_rate_warms_up_and_decays_to_zero():
    settings = TrainingSettings(steps=100, learning_rate=2.0, warmup=0.1)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert TrainingSettings(steps=1, warmup=0).rate_at(0) == 1e-3


def test_weight_decay_is_for_matrices_only():
    model = LanguageModel(CONFIG)
    decay = {id(p): g["weight_decay"] for g in make_optimizer(model, 1e-3, 0.5).param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        name: 0.5 if p.ndim >= 2 else 0.0 for name, p in model.named_parameters()
    }
    assert set(decay.values()) == {0.0, 0.5}


def test_a_loss_that_is_not_finite_stops_training():
    model = LanguageModel(CONFIG)
    with torch.no_grad():
        model.norm.weight[0] = torch.inf
    with pytest.raises(
        NotFiniteError, match=r"at training step 1 the loss is .* it began in the parameter norm\.weight"
    ):
        train(model, EASY, SHORT, seed=0, device=CPU)


def test_bfloat16_trains_float32_parameters():
    model = LanguageModel(CONFIG)
    result = train(model, EASY, SHORT.model_copy(update={"precision": "bfloat16"}), seed=0, device=CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    full = train(LanguageModel(CONFIG), EASY, SHORT, seed=0, device=CPU)
    assert result["curve"] != full["curve"]
    assert result["curve"][-1][1] == pytest.approx(full["curve"][-1][1], rel=0.05)


def test_a_finished_checkpoint_is_used_and_only_for_the_same_recipe(tmp_path):
    def run(seed=0, settings=SHORT):
        said = []
        model, training = train_or_load(
            CONFIG, EASY, settings, seed=seed, device=CPU, folder=tmp_path, progress=lambda *args: said.append(args[1])
        )
        return model, training, said

    model, training, said = run()
    assert len(said) == SHORT.steps
    loaded, again, said = run()
    assert said == ["trained already"] and again == training and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert len(run(seed=1)[2]) == SHORT.steps
    assert len(run(seed=1, settings=TrainingSettings(steps=3, batch=4, length=32))[2]) == 3
    # without the record, which is written last, the model beside it does not count as finished
    record = tmp_path / "training.json"
    assert json.loads(record.read_text())["training"]["steps"] == 3
    record.unlink()
    assert len(run()[2]) == SHORT.steps


def test_the_seed_decides_the_initial_parameters(tmp_path):
    settings = TrainingSettings(steps=1, batch=1, length=32, learning_rate=1e-12)

    def embedding(seed):
        model, _ = train_or_load(
            CONFIG, EASY, settings, seed=seed, device=CPU, folder=tmp_path / str(seed), progress=lambda *_: None
        )
        return model.embedding.weight

    assert not torch.allclose(embedding(0), embedding(1), atol=1e-3)


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"learning_rate": 0}, {"warmup": 1.5}, {"precision": "int8"}, {"lr": 1}]
)
def test_settings_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError):
        TrainingSettings(**fields)


PKM = ModelConfig("softmax_attention(heads=2) | pkm(heads=1, n_subkeys=8, d_k=8, top_k=2)@0", d_model=16, n_layers=1)


def test_a_mixers_parameter_group_has_its_own_rate_and_decay():
    model = LanguageModel(PKM)
    values = model.layers[0].feed_forward.values
    optimizer = make_optimizer(model, 1e-3, 0.5)
    (group,) = [g for g in optimizer.param_groups if any(p is values for p in g["params"])]
    assert len(group["params"]) == 1
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(4e-3), 0.0)
    rest = [g for g in optimizer.param_groups if g is not group]
    assert {g["lr"] for g in rest} == {1e-3}
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_the_schedule_keeps_the_ratio_of_the_rates():
    """One step of Adam moves what has a gradient by about the learning rate."""
    settings = SHORT.model_copy(update={"steps": 1, "warmup": 0.0, "weight_decay": 0.0})
    model = LanguageModel(PKM)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, EASY, settings, seed=0, device=CPU)
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert moved["layers.0.feed_forward.values"] == pytest.approx(4e-3, rel=1e-2)
    assert moved["layers.0.mixer.o_proj.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_sparse_gradients_are_refused_before_any_work():
    layout = PKM.layout.replace("top_k=2", "top_k=2, sparse_gradient=true")
    with pytest.raises(ValueError, match="AdamW takes no sparse gradients"):
        make_optimizer(LanguageModel(dataclasses.replace(PKM, layout=layout)), 1e-3, 0.1)


PACKED = TextTask(packing="documents")


def one_by_one(batch):
    """The documents of a batch as batches of their own, cut where rows end."""
    for row in range(len(batch.tokens)):
        own = batch.map(lambda t, row=row: t[row : row + 1])
        edges = own.edges or [0, own.tokens.shape[1]]
        yield from (own.map(lambda t, a=a, b=b: t[:, a:b]) for a, b in itertools.pairwise(edges))


def packed_batch():
    """Rows of a few documents each: the library's files are long, so every tenth token starts another one here."""
    batch = PACKED.train_batch(0, 3, 40, seed=0)
    batch.documents[:, 7::10] = True
    batch.targets[:, 6::10] = -100
    return batch


def test_loss_and_gradients_of_packed_documents_are_those_of_each_by_itself():
    batch, model = packed_batch(), LanguageModel(CONFIG).double()
    loss = batch_loss(model, batch, CPU)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    scored = [part for part in one_by_one(batch) if (part.targets != -100).any()]
    count = sum(int((part.targets != -100).sum()) for part in scored)
    total = sum(batch_loss(model, part, CPU) * (part.targets != -100).sum() for part in scored) / count
    total.backward()
    assert count == 3 * 36 and len(scored) >= 15
    torch.testing.assert_close(loss, total.float(), rtol=1e-6, atol=0)
    for grad, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-5, atol=1e-7)


def test_training_reads_packed_batches_in_parts_as_in_one(monkeypatch):
    packed, plain = packed_batch(), packed_batch()
    plain.documents[:, 1:] = False

    def curve(batch, accumulate=1):
        monkeypatch.setattr(TextTask, "train_batch", lambda *args: batch)
        settings = TrainingSettings(steps=3, batch=3, length=40, learning_rate=1e-2, accumulate=accumulate)
        record = train(LanguageModel(CONFIG), PACKED, settings, seed=0, device=CPU)
        return [loss for _, loss in record["curve"]]

    assert curve(packed, accumulate=3) == pytest.approx(curve(packed), rel=1e-4)
    assert curve(plain) != pytest.approx(curve(packed), rel=1e-4)  # the documents do reach the model


def test_compiling_and_packing_are_refused_together():
    with pytest.raises(ValueError, match="compile is for sequences that all look alike"):
        TrainingSettings(compile="default").check(PACKED)
