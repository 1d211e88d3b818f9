"""Tasks: what they promise of every sequence, that they repeat, and that evaluation never sees the training text."""

import numpy as np
import pytest
import torch
from mixerzoo.benchmarks.tasks import IGNORE, MqarTask, NeedleTask, TextTask, corpus
from mixerzoo.benchmarks.tasks.corpus import Text, load_corpus

RECALL_TASKS = [NeedleTask(), NeedleTask(n_needles=3, asked=1), MqarTask(), MqarTask(n_pairs=1, alpha=0.5)]
TASKS = [*RECALL_TASKS, TextTask()]


def same(a, b):
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(torch.nan_to_num(x, -1), torch.nan_to_num(y, -1)) for x, y in pairs)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_batches_are_a_function_of_their_arguments(task):
    batch = task.train_batch(3, 4, 128, seed=5)
    assert same(batch, task.train_batch(3, 4, 128, seed=5))
    assert not same(batch, task.train_batch(4, 4, 128, seed=5))
    assert not same(batch, task.train_batch(3, 4, 128, seed=6))
    one_by_one = list(task.eval_batches(128, 5, seed=5, batch=1))
    assert len(one_by_one) == 5
    at_once = list(task.eval_batches(128, 5, seed=5, batch=4))
    assert [len(b.tokens) for b in at_once] == [4, 1]
    assert torch.equal(torch.cat([b.tokens for b in one_by_one]), torch.cat([b.tokens for b in at_once]))


@pytest.mark.parametrize("task", RECALL_TASKS, ids=repr)
def test_shapes_ids_and_questions(task):
    batch = task.train_batch(0, 6, 96, seed=0)
    assert all(x.shape == (6, 96) for x in vars(batch).values())
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.min() >= 0 and batch.tokens.max() < task.vocab_size
    asked = batch.targets != IGNORE
    assert asked.any(dim=1).all()
    assert torch.equal(asked, ~batch.depths.isnan())
    assert torch.equal(asked, batch.distances > 0)
    assert batch.depths[asked].min() >= 0 and batch.depths[asked].max() <= 1
    # the answer stands where distances says, and its key before it
    rows, questions = asked.nonzero(as_tuple=True)
    answers = questions - batch.distances[asked]
    assert torch.equal(batch.tokens[rows, answers], batch.targets[asked])
    assert torch.equal(batch.tokens[rows, answers - 1], batch.tokens[asked])


def test_the_context_ends_before_the_questions_or_cannot_be_told_from_them():
    task = NeedleTask(n_needles=5, asked=2)
    tokens, context = task.train_batch(0, 3, 96, seed=0).tokens, task.context_length(96)
    assert (tokens[:, context] == task.ask_id).all() and (tokens[:, :context] != task.ask_id).all()
    assert MqarTask().context_length(96) is None and TextTask().context_length(96) is None


@pytest.mark.parametrize("task", RECALL_TASKS, ids=repr)
def test_a_length_that_is_too_short_is_refused(task):
    shortest = task.min_length
    assert task.train_batch(0, 2, shortest, seed=0).tokens.shape == (2, shortest)
    with pytest.raises(ValueError, match=f"length >= {shortest}"):
        task.train_batch(0, 2, shortest - 1, seed=0)


def test_needles_stand_in_unbroken_text_and_are_asked_at_the_end():
    task = NeedleTask(n_needles=4)
    text = load_corpus().train.data.tobytes()
    for tokens in task.train_batch(1, 8, 200, seed=0).tokens.numpy():
        context, ask, questions = tokens[:191], tokens[191], tokens[192:]
        assert ask == task.ask_id
        haystack = context[context < 256]
        assert len(haystack) == 191 - 8  # no needle overwrote another, nor text
        assert haystack.astype(np.uint8).tobytes() in text
        needles = context[context >= 256].reshape(4, 2)
        keys, values = needles[:, 0], needles[:, 1]
        assert len(set(keys)) == 4
        assert ((keys >= task.first_key) & (keys < task.first_value)).all()
        assert (values >= task.first_value).all()
        assert {tuple(pair) for pair in needles} == {tuple(pair) for pair in questions.reshape(4, 2)}


@pytest.mark.parametrize("length", [64, 1000])
def test_evaluation_hides_as_many_needles_in_every_quarter(length):
    batch = next(NeedleTask(n_needles=8).eval_batches(length, 16, seed=0, batch=16))
    depths = batch.depths[batch.targets != IGNORE].reshape(16, 8)
    for row in depths:
        assert torch.histc(row, 4, 0, 1).tolist() == [2, 2, 2, 2]


def test_evaluation_spreads_a_single_needle_over_the_quarters():
    batch = next(NeedleTask(n_needles=1).eval_batches(256, 100, seed=0, batch=100))
    counts = torch.histc(batch.depths[batch.targets != IGNORE], 4, 0, 1)
    assert counts.min() > 10


def test_asked_limits_the_questions_and_length_counts_everything():
    batch = NeedleTask(n_needles=8, asked=2).train_batch(0, 3, 100, seed=0)
    assert (batch.targets != IGNORE).sum(dim=1).tolist() == [2, 2, 2]
    assert (batch.tokens[:, 95] == 256).all()  # ask, then two questions and their answers: the last five tokens


@pytest.mark.parametrize("fields", [{"n_needles": 9, "n_keys": 8}, {"asked": 9}, {"asked": 0}, {"unknown": 1}])
def test_parameters_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError):
        NeedleTask(**fields)


SPLITS = ("train", "validation", "eval")


def test_no_two_splits_share_a_file():
    library = load_corpus()
    documents = {}
    for split in SPLITS:
        text = library.split(split)
        assert text.sizes.sum() == text.data.size
        documents[split] = {d.tobytes() for d in np.split(text.data, np.cumsum(text.sizes)[:-1])}
        assert len(documents[split]) == len(text.sizes)
    assert not documents["train"] & documents["eval"]
    assert not documents["validation"] & (documents["train"] | documents["eval"])
    total = sum(library.split(split).data.size for split in SPLITS)
    assert 0.05 < library.eval.data.size / total < 0.2 and 0.05 < library.validation.data.size / total < 0.2


def test_the_streams_of_the_splits_differ():
    drawn = np.concatenate([NeedleTask()._stream(split, 0, 128).random(8) for split in SPLITS])
    assert len(set(drawn.tolist())) == 24


@pytest.mark.parametrize("task", RECALL_TASKS, ids=repr)
def test_another_load_is_the_same_task_with_more_to_hold(task):
    more = task.with_load(task.load + 4)
    assert more.load == task.load + 4 and more.with_load(task.load) == task
    assert more.vocab_size == task.vocab_size
    with pytest.raises(ValueError):
        task.with_load(10**6)
    with pytest.raises(ValueError, match="no load"):
        TextTask().with_load(2)


def test_a_folder_of_text_files(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 40)
    (tmp_path / "copy.txt").write_text("document 0 " * 40)
    (tmp_path / "image.png").write_bytes(b"\0\1\2" * 999)
    folder = load_corpus(str(tmp_path))
    assert sum(len(folder.split(split).sizes) for split in SPLITS) == 6
    task = NeedleTask(text_folder=str(tmp_path), n_needles=1)
    tokens = next(task.eval_batches(64, 1, seed=0, batch=1)).tokens[0]
    assert bytes(tokens[tokens < 256].tolist()) in folder.eval.data.tobytes()
    with pytest.raises(ValueError, match="window of 99996 bytes"):
        task.train_batch(0, 1, 100_001, seed=0)


def test_of_too_much_text_a_part_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_BYTES", 1000)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 300)
    taken = load_corpus(str(tmp_path))
    assert sum(taken.split(split).data.size for split in SPLITS) == 1000
    assert sum(len(taken.split(split).sizes) for split in SPLITS) == 4


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*is not a folder"):
        load_corpus(str(tmp_path / "nowhere"))
    (tmp_path / "one.txt").write_text("alone")
    with pytest.raises(ValueError, match="holds 1 different text files; at least three"):
        load_corpus(str(tmp_path))


def test_windows_stay_within_documents_unless_told():
    text = Text(np.array([1] * 5 + [2] * 3 + [3] * 9, dtype=np.uint8), np.array([5, 3, 9]), "three documents")
    rng = np.random.default_rng(0)
    windows = text.windows(rng, 400, 4)
    assert windows.shape == (400, 4)
    assert {tuple(w) for w in windows} == {(1,) * 4, (3,) * 4}
    assert 0.15 < (windows[:, 0] == 1).mean() < 0.35  # 2 of the 8 windows
    assert any(len(set(w)) > 1 for w in text.windows(rng, 100, 4, across=True).tolist())
    with pytest.raises(ValueError, match="window of 10 bytes is asked for, but the longest is 9"):
        text.windows(rng, 1, 10)


def test_text_is_scored_everywhere_within_one_document():
    batch = TextTask().train_batch(0, 4, 300, seed=0)
    text = load_corpus().train.data.tobytes()
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert bytes([*tokens, targets[-1]]) in text
    assert batch.depths.isnan().all() and not batch.distances.any()


def test_mqar_filler_never_repeats_a_pair():
    task = MqarTask(n_pairs=6)
    batch = task.train_batch(0, 16, 64, seed=0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        keys, values = tokens[0:12:2], tokens[1:12:2]
        assert len(set(keys)) == len(set(values)) == 6
        assert max(keys) < task.first_value <= min(values) and max(values) < task.first_filler
        queries = [i for i, target in enumerate(targets) if target != IGNORE]
        assert {tokens[i]: targets[i] for i in queries} == dict(zip(keys, values, strict=True))
        assert min(queries) >= 12 and all(i % 2 == 0 for i in queries)
        filler = [token for i, token in enumerate(tokens) if i >= 12 and i not in queries]
        assert len(filler) == 64 - 18 and min(filler) >= task.first_filler


def test_mqar_queries_follow_a_power_law():
    task = MqarTask(n_pairs=1, alpha=0.5)
    batch = task.train_batch(0, 2000, 42, seed=0)
    slots = ((batch.targets != IGNORE).int().argmax(1) - 2) // 2
    shares = torch.bincount(slots, minlength=20) / 2000
    weights = torch.arange(1, 21) ** -0.5
    torch.testing.assert_close(shares, weights / weights.sum(), atol=0.04, rtol=0)


@pytest.mark.parametrize("fields", [{"n_pairs": 9, "n_keys": 8}, {"n_pairs": 9, "n_values": 8}, {"n_fillers": 0}])
def test_mqar_parameters_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError):
        MqarTask(**fields)
