"""What every task promises of its batches, whatever it asks."""

import sys

import numpy as np
import pytest
import torch
from mixerzoo.benchmarks.tasks import (
    IGNORE,
    CopyTask,
    DomainShiftTask,
    InductionTask,
    MadCompressionTask,
    MadFuzzyRecallTask,
    MadMemorizationTask,
    MadNoisyRecallTask,
    MadRecallTask,
    MadSelectiveCopyTask,
    NeedleNumberTask,
    NeedleTask,
    PhonebookTask,
    RecallTask,
    StateTrackingTask,
    ZoologyMqarTask,
    draws,
)
from pydantic import TypeAdapter

LOCATED = [  # tasks whose answers stand somewhere
    CopyTask(),
    CopyTask(n_tokens=5),
    DomainShiftTask(),
    DomainShiftTask(n_pairs=3, schedule="ABCAB"),
    InductionTask(),
    MadCompressionTask(),
    MadFuzzyRecallTask(),
    MadNoisyRecallTask(),
    MadRecallTask(),
    MadRecallTask(n_pairs=3),
    MadSelectiveCopyTask(),
    NeedleNumberTask(n_needles=2),
    NeedleNumberTask(n_needles=2, asked="all", digits=2, distractors=1),
    NeedleTask(values_per_key=3),
    NeedleTask(asked=3, distractors=5, overwrites=0.5),
    PhonebookTask(),
    PhonebookTask(n_entries=5, asked=3),
    ZoologyMqarTask(),
    ZoologyMqarTask(n_pairs=3, random_non_queries=False),
]
TASKS = [*LOCATED, MadMemorizationTask(), StateTrackingTask(), StateTrackingTask(group="parity")]
WITH_CONTEXT = [task for task in TASKS if task.context_length(200) is not None]
LENGTH = 300


def same(a, b):
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(torch.nan_to_num(x, -1), torch.nan_to_num(y, -1)) for x, y in pairs)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_batches_are_a_function_of_their_arguments(task):
    batch = task.train_batch(3, 4, LENGTH, seed=5)
    assert same(batch, task.train_batch(3, 4, LENGTH, seed=5))
    assert not same(batch, task.train_batch(4, 4, LENGTH, seed=5))
    assert not same(batch, task.train_batch(3, 4, LENGTH, seed=6))
    one_by_one, at_once = ([*task.eval_batches(LENGTH, 5, 5, n)] for n in (1, 4))
    assert [len(b.tokens) for b in at_once] == [4, 1]
    assert same(type(batch).cat(one_by_one), type(batch).cat(at_once))
    assert not same(at_once[0], next(task.eval_batches(LENGTH, 4, 5, 4, "validation")))


@pytest.mark.parametrize("task", TASKS, ids=repr)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_shapes_types_and_ids(task, split):
    batch = task.sample(np.random.default_rng(0), split, 6, LENGTH)
    assert all(x.shape == (6, LENGTH) for x in vars(batch).values())
    types = batch.tokens.dtype, batch.targets.dtype, batch.depths.dtype, batch.distances.dtype
    assert types == (torch.int64, torch.int64, torch.float32, torch.int64)
    scored = batch.targets != IGNORE
    assert scored.any(dim=1).all()
    for ids in (batch.tokens, batch.targets[scored]):
        assert ids.min() >= 0 and ids.max() < task.vocab_size
    assert batch.depths[~scored].isnan().all() and not batch.distances[~scored].any()


@pytest.mark.parametrize("task", LOCATED, ids=repr)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_answer_stands_where_distance_says(task, split):
    batch = task.sample(np.random.default_rng(1), split, 6, LENGTH)
    scored = batch.targets != IGNORE
    rows, questions = scored.nonzero(as_tuple=True)
    assert batch.distances[scored].min() >= 1 and batch.depths[scored].min() >= 0 and batch.depths[scored].max() <= 1
    answers = questions - batch.distances[scored]
    assert torch.equal(batch.tokens[rows, answers], batch.targets[scored])


@pytest.mark.parametrize("task", [MadMemorizationTask(), StateTrackingTask()], ids=repr)
def test_answers_that_stand_nowhere_have_no_depth(task):
    batch = task.train_batch(0, 4, 50, seed=0)
    assert batch.depths.isnan().all() and not batch.distances.any()


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_length_that_is_too_short_is_refused(task):
    shortest = task.min_length
    for step in range(20):
        batch = task.train_batch(step, 2, shortest, seed=0)
        assert batch.tokens.shape == (2, shortest) and (batch.targets != IGNORE).any(dim=1).all()
    with pytest.raises(ValueError, match=f"length >= {shortest}"):
        task.train_batch(0, 2, shortest - 1, seed=0)


@pytest.mark.parametrize("task", WITH_CONTEXT, ids=repr)
def test_the_context_ends_before_all_questions(task):
    batch = task.train_batch(0, 6, LENGTH, seed=0)
    context = task.context_length(LENGTH)
    scored = batch.targets != IGNORE
    questions = scored.nonzero()[:, 1]
    assert questions.min() >= context
    assert (questions - batch.distances[scored] < context).all()  # what is asked for stands in the context


@pytest.mark.parametrize("task", [task for task in TASKS if task.load is not None], ids=repr)
def test_another_load_is_the_same_task(task):
    for load in (task.load - 1, task.load + 1 if getattr(task, task_load(task)) != "all" else task.load - 2):
        other = task.with_load(load)
        assert other.load == load and other.vocab_size == task.vocab_size and other.chance == task.chance
        assert type(other) is type(task)
        assert other.model_dump() == {**task.model_dump(), task_load(task): load}
    with pytest.raises(ValueError):
        task.with_load(0)


def task_load(task):
    names = {"n_needles", "n_pairs", "n_tokens", "n_entries", "n_distinct", "n_facts"} & set(type(task).model_fields)
    assert len(names) == 1
    return names.pop()


@pytest.mark.parametrize("task", [CopyTask(), PhonebookTask()], ids=repr)
def test_a_load_that_is_the_length_can_be_fixed(task):
    assert task.load is None and task.with_load(5).load == 5


@pytest.mark.parametrize("task", [StateTrackingTask(), MadFuzzyRecallTask()], ids=repr)
def test_some_tasks_have_no_load(task):
    with pytest.raises(ValueError, match="no load"):
        task.with_load(5)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_suite_names_tasks(task):
    again = TypeAdapter(RecallTask).validate_python(task.model_dump())
    assert again == task and type(again) is type(task)


@pytest.mark.parametrize("task", [NeedleNumberTask(n_needles=8, asked="all"), PhonebookTask(n_entries=8, asked=8)])
def test_evaluation_asks_as_often_in_every_quarter(task):
    batch = next(task.eval_batches(2000, 16, seed=0, batch=16))
    for row, targets in zip(batch.depths, batch.targets, strict=True):
        depths = row[targets != IGNORE].reshape(8, -1)[:, 0]  # one for each needle
        assert torch.histc(depths, 4, 0, 1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_no_python_runs_for_each_token(task):
    task.train_batch(0, 1, LENGTH, seed=0)  # reads what text there is
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        batch = task.train_batch(0, 64, 4096, seed=0)
    finally:
        sys.settrace(before)
    assert batch.tokens.shape == (64, 4096)
    assert lines < 4096


FIELDS = [
    (CopyTask, {"n_tokens": 0}, "at least 1"),
    (DomainShiftTask, {"n_pairs": 9, "n_keys": 8}, "n_keys=8"),
    (DomainShiftTask, {"schedule": "ABC", "n_values": 2}, "n_values=2"),
    (DomainShiftTask, {"schedule": "A to B"}, "schedule"),
    (InductionTask, {"n_distinct": 65}, "n_symbols=64"),
    (MadCompressionTask, {"n_tokens": 300}, "max_tokens=256"),
    (MadFuzzyRecallTask, {"vocabulary": 6}, "2 ids for keys of 3 different"),
    (MadMemorizationTask, {"n_facts": 128}, "the 127 keys"),
    (MadNoisyRecallTask, {"vocabulary": 18}, "leaves 2 ids"),
    (MadRecallTask, {"n_pairs": 9}, "the 8 keys"),
    (NeedleNumberTask, {"asked": 6}, "n_needles=5"),
    (NeedleTask, {"distractors": 57}, "8 needles and 57 distractors"),
    (NeedleTask, {"overwrites": 0.5, "values_per_key": 2}, "contradict"),
    (NeedleTask, {"n_values": 2, "values_per_key": 3}, "3 distinct values"),
    (PhonebookTask, {"n_entries": 2, "asked": 3}, "at least asked=3"),
    (PhonebookTask, {"n_entries": 27, "name_letters": 1}, "27 distinct names"),
    (StateTrackingTask, {"group": "s4"}, "group"),
    (ZoologyMqarTask, {"vocabulary": 16}, "n_pairs=8 distinct keys"),
]


@pytest.mark.parametrize(("task", "fields", "message"), FIELDS)
def test_settings_that_cannot_be_are_refused(task, fields, message):
    with pytest.raises(ValueError, match=message):
        task(**fields)


@pytest.mark.parametrize(("n", "count"), [(5, 5), (40, 10), (1000, 30)])
def test_distinct_numbers_are_distinct_and_none_is_favoured(n, count):
    drawn = draws.distinct(np.random.default_rng(0), 20_000, n, count)
    assert drawn.shape == (20_000, count) and drawn.min() == 0 and drawn.max() == n - 1
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    for column in (drawn[:, 0], drawn[:, -1]):
        counts = np.bincount(column, minlength=n)
        chi2 = ((counts - 20_000 / n) ** 2).sum() / (20_000 / n)
        assert abs(chi2 - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5
