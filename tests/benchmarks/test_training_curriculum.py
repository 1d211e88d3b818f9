"""What the steps of a training read, the bar that ends it, and the schedules of its rate."""

import itertools
from collections import Counter

import pytest
import torch
from mixerzoo.benchmarks.measures.recall import answers_right
from mixerzoo.benchmarks.tasks import MqarTask, NeedleTask, TextTask
from mixerzoo.benchmarks.training import TrainingSettings, accuracy, train
from mixerzoo.benchmarks.training.evaluation import Reader
from mixerzoo.models import LanguageModel, ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig("softmax_attention(heads=2)", d_model=16, n_layers=1)
EASY = MqarTask(n_pairs=1, n_keys=2, n_values=2, n_fillers=1)
MIX = [
    {"share": 0.7, "mix": [{"length": 48, "load": 4, "weight": 3}, {"length": 96, "load": 8}]},
    {"share": 0.3, "mix": [{"length": 128}]},
]
SETTINGS = TrainingSettings(steps=1000, batch=8, length=64, curriculum=MIX)


def plans(settings, seed=0):
    return [settings.plan(step, seed) for step in range(settings.steps)]


def test_phases_take_their_share_of_the_steps_and_draws_their_weight():
    drawn = plans(SETTINGS)
    assert {(p.length, p.load) for p in drawn[700:]} == {(128, None)}
    counts = Counter((p.length, p.load) for p in drawn[:700])
    assert set(counts) == {(48, 4), (96, 8)}
    assert counts[48, 4] == pytest.approx(525, abs=40)  # 3.5 standard deviations
    assert {p.length: p.rows for p in drawn} == {48: 10, 96: 5, 128: 4}  # of 512 tokens
    assert TrainingSettings(batch=1, length=32, curriculum=MIX).plan(0, 0).rows == 1


def test_a_draw_is_a_function_of_the_seed_and_the_step_alone():
    assert plans(SETTINGS) == plans(SETTINGS)
    assert plans(SETTINGS)[:700] != plans(SETTINGS, seed=1)[:700]
    more = {"window_dropout": 0.5, "mixture": [{"task": {"task": "text"}}]}
    others = plans(TrainingSettings(steps=1000, batch=8, length=64, curriculum=MIX, **more))
    assert [p.length for p in others] == [p.length for p in plans(SETTINGS)]
    assert Counter(p.windowed for p in others)[True] == pytest.approx(500, abs=60)
    assert Counter(p.task for p in others)[1] == pytest.approx(500, abs=60)


def test_without_a_curriculum_every_step_is_alike():
    assert {(p.length, p.load, p.rows, p.task, p.windowed) for p in plans(TrainingSettings())} == {
        (256, None, 32, 0, False)
    }


def test_a_step_reads_what_its_plan_says_and_the_record_counts_it():
    settings = TrainingSettings(steps=6, batch=4, length=32, curriculum=MIX, mixture=[{"task": TextTask()}])
    task = NeedleTask(n_needles=2)
    drawn = plans(settings)
    for step, plan in enumerate(drawn):
        batch = settings.read(task, plan, step, 0)
        assert batch.tokens.shape == (plan.rows, plan.length)
        questions = int((batch.targets != -100).sum()) / plan.rows
        assert questions == (plan.length if plan.task == 1 else plan.load or 2)
    assert {p.task for p in drawn} == {0, 1}
    record = train(LanguageModel(CONFIG), task, settings, seed=0, device=CPU)
    assert record["tokens"] == sum(p.rows * p.length for p in drawn)


def test_shares_must_sum_to_one():
    with pytest.raises(ValueError, match=r"must sum to 1, got 0\.7"):
        TrainingSettings(curriculum=MIX[:1])


@pytest.mark.parametrize(
    ("fields", "task", "message"),
    [
        ({"length": 20}, NeedleTask(), "needs length >= 34, got 20"),
        ({"curriculum": [{"share": 1, "mix": [{"length": 64, "load": 16}]}]}, NeedleTask(), "needs length >= 66"),
        ({"curriculum": [{"share": 1, "mix": [{"length": 999, "load": 65}]}]}, NeedleTask(), "cannot have load 65"),
        ({"curriculum": [{"share": 1, "mix": [{"length": 999, "load": 2}]}]}, TextTask(), "has no load, got load 2"),
        ({"bar": {"length": 30}}, NeedleTask(), "needs length >= 34, got 30"),
        ({"bar": {"load": 100}}, NeedleTask(), "cannot have load 100"),
        ({"mixture": [{"task": NeedleTask(n_needles=60)}]}, NeedleTask(n_needles=1), "needs length >= 242"),
    ],
)
def test_what_a_task_cannot_have_is_refused_before_training(fields, task, message):
    settings = TrainingSettings(**{"length": 64, **fields})
    with pytest.raises(ValueError, match=message):
        settings.check(task)
    with pytest.raises(ValueError, match=message):
        train(LanguageModel(CONFIG), task, settings, seed=0, device=CPU)


def test_a_mixture_needs_a_vocabulary_that_holds_all_its_tasks():
    settings = TrainingSettings(length=64, mixture=[{"task": NeedleTask(n_needles=1, n_values=600)}])
    with pytest.raises(ValueError, match="use 921 token ids, the model has vocab_size 512"):
        train(LanguageModel(CONFIG), EASY, settings, seed=0, device=CPU)


def test_the_bar_stands_at_the_end_of_the_curriculum():
    task = NeedleTask(n_needles=6)
    assert TrainingSettings(bar={}).bar_at(task) == (256, 6)
    assert TrainingSettings(bar={"length": 512, "load": 3}).bar_at(task) == (512, 3)
    assert SETTINGS.bar_at(task) == (128, 6)
    assert TrainingSettings(curriculum=MIX, bar={"length": 96}).bar_at(task) == (96, 8)
    assert TrainingSettings(bar={}).bar_at(TextTask()) == (256, None)


TAUGHT = TrainingSettings(steps=200, batch=16, length=16, learning_rate=2e-2, bar={"examples": 32})


def test_training_ends_at_the_bar():
    model = LanguageModel(CONFIG)
    record = train(model, EASY, TAUGHT, seed=0, device=CPU)
    steps, tokens, accuracies = zip(*record["evaluations"], strict=True)
    assert all(a < 0.95 for a in accuracies[:-1]) and accuracies[-1] >= 0.95
    assert record["steps"] == steps[-1] < 200 and record["tokens"] == record["tokens_to_solve"] == tokens[-1]
    assert record["curve"][-1][0] == record["steps"]
    held_out = torch.cat([answers_right(model, b, CPU, None, 64)[0] for b in EASY.eval_batches(16, 32, 0, 8)])
    reached = held_out.double().mean().item()
    assert record["bar"] == {"accuracy": 0.95, "length": 16, "load": 1, "reached": reached, "passed": reached >= 0.95}
    assert record["bar"]["passed"] and not model.training


def test_training_may_go_on_beyond_the_bar():
    bar = TAUGHT.bar.model_copy(update={"stop": False, "every": 30})
    record = train(LanguageModel(CONFIG), EASY, TAUGHT.model_copy(update={"bar": bar}), seed=0, device=CPU)
    assert record["steps"] == 200
    assert [step for step, *_ in record["evaluations"]] == [30, 60, 90, 120, 150, 180, 200]
    first = next(tokens for _, tokens, right in record["evaluations"] if right >= 0.95)
    assert record["tokens_to_solve"] == first < record["tokens"]


def test_a_margin_lets_training_go_on_a_little():
    bar = TAUGHT.bar.model_copy(update={"accuracy": 0.3, "margin": 0.65})
    record = train(LanguageModel(CONFIG), EASY, TAUGHT.model_copy(update={"bar": bar}), seed=0, device=CPU)
    assert record["evaluations"][-1][2] >= 0.95
    assert record["tokens_to_solve"] < record["tokens"]


def test_what_cannot_be_learnt_does_not_pass():
    settings = TrainingSettings(steps=40, batch=4, length=64, bar={"examples": 8})
    record = train(LanguageModel(CONFIG), NeedleTask(), settings, seed=0, device=CPU)
    assert record["tokens_to_solve"] is None and record["steps"] == 40
    assert record["bar"]["passed"] is False and record["bar"]["reached"] < 0.3


def test_evaluation_does_not_change_training():
    plain = TrainingSettings(steps=12, batch=4, length=32)
    watched = plain.model_copy(update={"bar": TAUGHT.bar})
    layout = "softmax_attention(heads=2) | fwpkm(scope=persistent, n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@0"
    for config in (CONFIG, ModelConfig(layout, d_model=16, n_layers=1)):
        curves = [
            train(LanguageModel(config), NeedleTask(n_needles=2), settings, seed=0, device=CPU)["curve"]
            for settings in (plain, watched)
        ]
        assert curves[0] == curves[1]


def test_accuracy_counts_every_scored_position_over_the_whole_vocabulary():
    class Always(torch.nn.Module):
        """Says 65, the letter A, after everything."""

        def forward(self, tokens, scored, documents):
            return torch.nn.functional.one_hot(torch.full((int(scored.sum()),), 65), 512).float()

    where = {"length": 300, "examples": 5, "seed": 3, "device": CPU, "precision": "float32"}
    expected = torch.cat([b.targets for b in TextTask().eval_batches(300, 5, 3, 5, "validation")]) == 65
    for rows in (1, 2, 5):
        found = accuracy(Always(), TextTask(), split="validation", rows=rows, **where)
        assert found == pytest.approx(expected.double().mean().item()) and found > 0
    reader = Reader(LanguageModel(CONFIG))
    assert accuracy(reader, TextTask(), split="eval", rows=2, **where) == pytest.approx(
        accuracy(reader, TextTask(), split="eval", rows=3, **where), abs=1e-3
    )


def test_wsd_warms_up_stays_and_decays_linearly():
    settings = TrainingSettings(steps=100, learning_rate=2.0, warmup=0.1, schedule="wsd", decay=0.4)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(rates[10:60]) == {2.0}
    assert rates[60:] == pytest.approx([2.0 * (40 - i) / 40 for i in range(40)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    flat = TrainingSettings(steps=10, warmup=0, schedule="wsd", decay=0)
    assert {flat.rate_at(step) for step in range(10)} == {1e-3}
    with pytest.raises(ValueError, match=r"warmup \+ decay must be at most 1"):
        TrainingSettings(schedule="wsd", warmup=0.5, decay=0.6)
