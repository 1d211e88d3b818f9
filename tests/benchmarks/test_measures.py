"""Recall and perplexity: what they score, and the form of what they report."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from mixerzoo.benchmarks.errors import NotFiniteError
from mixerzoo.benchmarks.measures import Perplexity, Recall, Training, Tuning, measures
from mixerzoo.benchmarks.suite import parse_measure
from mixerzoo.benchmarks.tasks import MqarTask, NeedleTask, TextTask
from mixerzoo.benchmarks.training import TrainingSettings
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.models import LanguageModel, ModelConfig
from torch import nn
from torch.nn import functional as F

CPU = torch.device("cpu")
CONFIG = ModelConfig("sliding_window_attention(heads=2, window=8)", d_model=16, n_layers=1)
BRIEF = TrainingSettings(steps=2, batch=2, length=64)


class Lookup(nn.Module):
    """Answers with the token that followed when the present one was last read, if that is within `reach` tokens."""

    def __init__(self, vocab_size, reach=10**9):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.reach = reach

    def features(self, tokens, state=None, return_state=False):
        answers = torch.zeros_like(tokens)
        for row, ids in enumerate(tokens.tolist()):
            seen = {}
            for i, token in enumerate(ids):
                if i - seen.get(token, -self.reach) < self.reach:
                    answers[row, i] = ids[seen[token]]
                seen[token] = i + 1
        state = SimpleNamespace(nbytes=tokens.numel())
        return F.one_hot(answers, self.config.vocab_size).float(), state

    def head(self, features):
        return features

    def read(self, tokens, state=None, *, chunk_size, scored=None):
        features, state = self.features(tokens, state, return_state=True)
        return features[scored] if scored is not None else None, state


def rows_of(recall, model, length):
    recall = recall.model_copy(update={"lengths": (length,)})
    metrics = recall.ask(model, seed=0, device=CPU, progress=lambda *_: None)
    count_hits(metrics)
    return metrics["rows"]


def count_hits(metrics):
    """The strings of answers say the same as the counts."""
    for cell in metrics["answers"]:
        own = [r for r in metrics["rows"] if all(r[k] == cell[k] for k in ("length", "load", "passes", "memory"))]
        text = "".join(cell["hits"])
        for recent, right, wrong in ((False, "1", "0"), (True, "r", "w")):
            assert text.count(right) == sum(r["correct"] for r in own if r["recent"] == recent)
            assert text.count(right) + text.count(wrong) == sum(r["total"] for r in own if r["recent"] == recent)


@pytest.mark.parametrize("task", [NeedleTask(), NeedleTask(n_needles=5, asked=2), MqarTask()], ids=repr)
def test_a_model_that_looks_up_is_always_right(task):
    rows = rows_of(Recall(task=task, training=BRIEF, examples=6), Lookup(task.vocab_size), 256)
    assert all(row["correct"] == row["total"] > 0 for row in rows)
    asked = sum(row["total"] for row in rows)
    assert asked == 6 * {"needle": getattr(task, "n_asked", 0), "mqar": 8}[task.task]


def test_recent_needles_and_depths_are_told_apart():
    task = NeedleTask()
    recall = Recall(task=task, training=BRIEF, examples=40, recent=100)
    rows = rows_of(recall, Lookup(task.vocab_size, reach=100), 400)
    for row in rows:
        assert row["correct"] == (row["total"] if row["recent"] else 0)
        assert row["chance"] == 1 / 64 and row["length"] == 400 and row["passes"] == 1 and row["load"] == 8
    far = {row["depth"]: row["total"] for row in rows if not row["recent"]}
    near = {row["depth"]: row["total"] for row in rows if row["recent"]}
    assert set(far) == {0.0, 0.25, 0.5, 0.75}
    assert set(near) == {0.75}  # 100 tokens back of 400, questions included, is the last quarter
    assert far[0.75] + near[0.75] == far[0.0] == 80


def test_a_model_that_knows_nothing_is_at_chance():
    task = NeedleTask(n_values=2)
    model = Lookup(task.vocab_size, reach=0)
    model.head = lambda features: features + 2 * F.one_hot(torch.tensor(task.first_value), task.vocab_size)
    rows = rows_of(Recall(task=task, training=BRIEF, examples=64), model, 128)
    share = sum(row["correct"] for row in rows) / sum(row["total"] for row in rows)
    assert share == pytest.approx(task.chance, abs=0.1)  # 512 answers


class SlowLearner(Lookup):
    """Knows what followed each token in what it has read at least `readings` times, and nothing before."""

    def __init__(self, vocab_size, readings):
        super().__init__(vocab_size)
        self.readings = readings
        self.lengths = []

    def features(self, tokens, state=None, return_state=False):
        self.lengths.append(tokens.shape[1])
        known = state.known if state is not None and state.times >= self.readings else [{} for _ in tokens]
        answers = torch.tensor([[seen.get(t, 0) for t in ids] for seen, ids in zip(known, tokens.tolist())])
        known = [dict(itertools.pairwise(ids)) for ids in tokens.tolist()]
        state = SimpleNamespace(known=known, times=state.times if state is not None else 0, nbytes=1)
        return F.one_hot(answers, self.config.vocab_size).float(), state

    def restart(self, state):
        return SimpleNamespace(known=state.known, times=state.times + 1)


@pytest.mark.parametrize("readings, learned", [(1, {1: False, 2: True, 4: True}), (3, {1: False, 2: False, 4: True})])
def test_a_model_that_learns_by_reading_again_is_found_out(readings, learned):
    task = NeedleTask()
    model = SlowLearner(task.vocab_size, readings)
    recall = Recall(task=task, training=BRIEF, examples=6, eval_batch=3, passes=(1, 2, 4))
    rows = rows_of(recall, model, 256)
    assert {row["passes"] for row in rows} == {1, 2, 4}
    for row in rows:
        assert row["correct"] == (row["total"] if learned[row["passes"]] else 0)
    for passes in (1, 2, 4):
        assert sum(row["total"] for row in rows if row["passes"] == passes) == 6 * 8
    # twice, for two batches: the context is 256 tokens less the ask marker, 8 keys and 8 values
    assert model.lengths == 2 * [256, 239, 256, 239, 239, 256]


def test_logits_that_are_not_finite_are_no_answer():
    model = Lookup(NeedleTask().vocab_size)
    model.head = lambda features: features * torch.nan
    with pytest.raises(NotFiniteError, match="after reading 128 tokens"):
        rows_of(Recall(training=BRIEF, examples=1), model, 128)


def teach(measure, config, folder, seed=0):
    """Run the training case of a measure; returns its metrics."""
    training = measure.training_case({}, measure.training)
    return training.run(config, seed=seed, device=CPU, folder=folder, progress=lambda *_: None)


def ask(measure, config, folder, seed=0, progress=lambda *_: None):
    (case,) = measure.asking_cases(measure.training, "trained")
    return case.run(config, seed=seed, device=CPU, folder=folder, progress=progress)


def test_a_training_reports_everything(tmp_path):
    metrics = teach(Recall(training=BRIEF), CONFIG, tmp_path, seed=3)
    assert set(metrics) == {"training", "data", "chosen", "parameters", "d_ff", "flops_per_token", "text"}
    assert metrics == json.loads(json.dumps(metrics))
    assert metrics["training"]["tokens"] == 2 * 2 * 64 and len(metrics["training"]["curve"]) == 2
    assert metrics["parameters"] > 512 * 16 and metrics["flops_per_token"] > 2 * 512 * 16
    assert len(metrics["text"]["sha256"]) == 64
    assert teach(Recall(training=BRIEF), CONFIG, tmp_path, seed=3) == metrics  # from the checkpoint, seconds included


def test_a_tuning_scores_on_the_validation_stream_alone(tmp_path, monkeypatch):
    asked = []
    batches = NeedleTask.eval_batches

    def spy(self, length, examples, seed, batch, split="eval"):
        asked.append((self.load, length, split))
        return batches(self, length, examples, seed, batch, split)

    monkeypatch.setattr(NeedleTask, "eval_batches", spy)
    mix = [{"length": 64, "load": 4, "weight": 3}, {"length": 96, "load": 8}]
    settings = TrainingSettings(steps=2, batch=2, length=64, curriculum=[{"share": 1, "mix": mix}])
    tuning = Tuning(training=settings, choice={"learning_rate": 1e-3}, examples=5)
    metrics = tuning.run(CONFIG, seed=3, device=CPU, folder=tmp_path, progress=lambda *_: None)
    assert asked == [(4, 64, "validation"), (8, 96, "validation")]
    assert metrics["score"] == pytest.approx(math.log(512), abs=1.0) and 0 <= metrics["accuracy"] < 0.5
    assert metrics["tokens"] == metrics["training"]["tokens"] and metrics["choice"] == {"learning_rate": 1e-3}
    assert metrics == json.loads(json.dumps(metrics))


def test_recall_reports_everything(tmp_path):
    recall = Recall(
        training=BRIEF, lengths=(256,), loads=(4, 8), examples=3, eval_batch=2, memory=("fresh", "persistent")
    )
    teach(recall, CONFIG, tmp_path, seed=3)
    said = []
    with record_backends() as backends:
        metrics = ask(recall, CONFIG, tmp_path, seed=3, progress=lambda *args: said.append(args))
    assert set(metrics) == {"rows", "answers", "state_bytes", "memories", "text"} and backends
    assert metrics["memories"] == []
    assert metrics == json.loads(json.dumps(metrics))
    count_hits(metrics)
    cells = {(c["load"], c["memory"]): c["hits"] for c in metrics["answers"]}
    assert set(cells) == {(load, memory) for load in (4, 8) for memory in ("fresh", "persistent")}
    assert [len(hits) for hits in cells[8, "fresh"]] == [8, 8, 8]
    keys = {"length", "load", "passes", "memory", "depth", "correct", "total", "chance", "recent"}
    assert all(set(row) == keys and row["length"] == 256 for row in metrics["rows"])
    assert set(metrics["state_bytes"]) == {"256"} and metrics["state_bytes"]["256"] > 0
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)
    assert cells[8, "fresh"] == cells[8, "persistent"]  # a window has no memory that could persist
    in_pieces = recall.model_copy(update={"chunk_size": 50})
    pieces = ask(in_pieces, CONFIG, tmp_path, seed=3)
    assert (pieces["rows"], pieces["answers"]) == (metrics["rows"], metrics["answers"])


def test_a_model_that_is_not_there_is_not_asked(tmp_path):
    with pytest.raises(
        ValueError, match=r"the model that the case trained trained cannot be loaded: .*--retry-failed` trains it again"
    ):
        ask(Recall(training=BRIEF, lengths=(64,)), CONFIG, tmp_path)


def test_a_persistent_memory_is_there_for_the_next_sequence():
    class Hoarder(SlowLearner):
        """Remembers every pair that it read before its last restart."""

        def restart(self, state):
            known = {**(state.before or {}), **state.known[0]}
            return SimpleNamespace(known=[known], times=1)

        def features(self, tokens, state=None, return_state=False):
            before = state.known[0] if state is not None else None
            answers, after = super().features(tokens, state, return_state)
            after.before = before
            return answers, after

    task = NeedleTask(n_needles=2, n_keys=2, n_values=2)
    recall = Recall(task=task, training=BRIEF, lengths=(64,), examples=40, memory=("fresh", "persistent"))
    rows = recall.ask(Hoarder(task.vocab_size, 1), seed=0, device=CPU, progress=lambda *_: None)["rows"]
    correct = {memory: sum(r["correct"] for r in rows if r["memory"] == memory) for memory in ("fresh", "persistent")}
    assert correct["fresh"] == 0 and 20 < correct["persistent"] < 60  # half of the values are what they were before


def test_a_memory_is_read_again_and_a_window_gains_nothing_by_it(tmp_path):
    recall = Recall(training=BRIEF, lengths=(64,), examples=4, passes=(1, 3))
    memory = "sliding_window_attention(heads=2, window=8) | fwpkm(n_subkeys=8, d_k=8, d_v=8, top_k=2, chunk_size=16)@0"
    for name, layout in (("window", CONFIG.layout), ("memory", memory)):
        config = ModelConfig(layout, d_model=16, n_layers=1)
        teach(recall, config, tmp_path / name)
        metrics = ask(recall, config, tmp_path / name)
        rows = {passes: [r for r in metrics["rows"] if r["passes"] == passes] for passes in (1, 3)}
        assert [r["total"] for r in rows[1]] == [r["total"] for r in rows[3]]
        if name == "window":
            assert [r["correct"] for r in rows[1]] == [r["correct"] for r in rows[3]]
        model = LanguageModel.load(tmp_path / name / "checkpoint").eval()
        batch = next(recall.task.eval_batches(64, 4, 0, 4))
        with torch.no_grad():
            _, state = model.features(batch.tokens[:, :47], return_state=True)
            first, again = model(batch.tokens)[0], model(batch.tokens, model.restart(state))[0]
        assert torch.equal(first, again) == (name == "window")


def test_perplexity_reports_every_position(tmp_path):
    measure = Perplexity(training=BRIEF, length=200, examples=3, eval_batch=2, first_bucket=16)
    teach(measure, CONFIG, tmp_path)
    metrics = ask(measure, CONFIG, tmp_path)
    rows = metrics["rows"]
    assert [(row["start"], row["end"]) for row in rows] == [(0, 16), (16, 32), (32, 64), (64, 128), (128, 200)]
    assert [row["tokens"] for row in rows] == [48, 48, 96, 192, 216]
    assert all(row["nats"] == pytest.approx(math.log(512), abs=1.0) for row in rows)  # it has not learned much yet
    pieces = ask(measure.model_copy(update={"chunk_size": 37}), CONFIG, tmp_path)
    assert [row["nats"] for row in pieces["rows"]] == pytest.approx([row["nats"] for row in rows], rel=1e-5)
    assert metrics == json.loads(json.dumps(metrics))


def test_nats_stand_at_their_position():
    class Certain(nn.Module):
        """Knows each next byte up to position 10, and nothing after."""

        def forward(self, tokens, state, return_state):
            logits = 50.0 * F.one_hot(tokens.roll(-1, dims=1), 256).float()
            logits[:, 10:] = 0
            return logits, None

    measure = Perplexity(training=BRIEF, length=40, examples=5, eval_batch=2, first_bucket=10)
    totals = measure._totals(Certain(), 0, CPU, lambda *_: None)
    assert totals[:10].max() < 1e-6
    torch.testing.assert_close(totals[10:], torch.full((30,), 5 * math.log(256)).double())


@pytest.mark.parametrize(
    "length, edges", [(64, [0, 64]), (10, [0, 10]), (128, [0, 64, 128]), (300, [0, 64, 128, 256, 300])]
)
def test_bucket_edges(length, edges):
    assert Perplexity(length=length).edges == edges


def test_a_vocabulary_that_is_too_small_is_refused_before_any_work(tmp_path):
    config = ModelConfig("sliding_window_attention", d_model=16, n_layers=1, vocab_size=128)
    for measure, needed in ((Recall(), 385), (Perplexity(), 256), (Training(), 385), (Tuning(), 385)):
        with pytest.raises(ValueError, match=f"uses {needed} token ids but the model has vocab_size=128"):
            measure.run(config, seed=0, device=CPU, folder=tmp_path, progress=lambda *_: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"passes": (2, 1)}, r"passes must be distinct and rising, such as \[1, 2, 4\], got \[2, 1\]"),
        ({"passes": (1, 1)}, "distinct and rising"),
        ({"passes": ()}, "at least 1 item"),
        ({"passes": (0,)}, "greater than or equal to 1"),
        ({"passes": (1, 2), "task": {"task": "mqar"}}, r"passes must be \[1\] for mqar, got \[1, 2\]: its questions"),
        ({"passes": (2,), "task": {"task": "mqar"}}, r"passes must be \[1\] for mqar"),
        ({"loads": (100,)}, "n_keys=64 cannot give 100 needles"),
        ({"lengths": (96,), "loads": (4, 32)}, "needs length >= 130, got 96"),
        ({"memory": ("stale",)}, "'fresh' or 'persistent'"),
        ({"lengths": (32,)}, "needs length >= 34, got 32"),
        ({"training": {"length": 30}}, "needs length >= 34, got 30"),
        ({"task": {"task": "text"}}, "does not match any of the expected tags"),
        ({"example": 3}, "Extra inputs are not permitted"),
    ],
)
def test_recall_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recall(**fields)


def test_measures_are_found_by_name_and_survive_yaml():
    assert len(measures()) >= 11
    for name, kind in measures().items():
        measure = parse_measure({"measure": name})
        assert type(measure) is kind
        assert parse_measure(json.loads(measure.model_dump_json())) == measure
        assert len(kind().cases()) == {"speed": 24, "memory": 12, "recall": 6}.get(name, 1)
    recall = parse_measure({"measure": "recall", "task": {"task": "mqar", "n_pairs": 4}})
    assert recall.task == MqarTask(n_pairs=4)
    assert Perplexity().task == TextTask()
