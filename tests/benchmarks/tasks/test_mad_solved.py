"""MAD's tasks, against readers that know the format and nothing of how sequences are made."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.benchmarks.tasks import (
    IGNORE,
    MadCompressionTask,
    MadFuzzyRecallTask,
    MadMemorizationTask,
    MadNoisyRecallTask,
    MadRecallTask,
    MadSelectiveCopyTask,
)

from .solved import check_solved


def solve_recall(task, tokens):
    n_keys = (task.vocabulary - getattr(task, "n_noise", 0)) // 2
    shown, solved = {}, {}
    for i in range(0, len(tokens), 2):
        if tokens[i] >= n_keys:
            continue  # noise
        if tokens[i] in shown:
            place = shown[tokens[i]]
            solved[i] = tokens[place], place, place / (i - 1)
        if i + 1 < len(tokens):
            shown[tokens[i]] = i + 1
    return solved


def read_motifs(task, tokens):
    """Keys and values in turn, each with its place: runs of key tokens and of value tokens."""
    n_keys, blank = (task.vocabulary - 1) // 2, task.vocabulary - 1
    first = next(i for i, token in enumerate(tokens) if token != blank)
    runs, place = [], first
    for _, run in itertools.groupby(tokens[first:], key=lambda token: token < n_keys):
        runs.append((tuple(run), place))
        place += len(runs[-1][0])
    return list(zip(runs[::2], runs[1::2], strict=True))


def solve_fuzzy(task, tokens):
    shown, solved = {}, {}
    for (key, key_at), (value, value_at) in read_motifs(task, tokens):
        if key in shown:
            known, known_at = shown[key]
            for i, token in enumerate(known):
                question = key_at + len(key) - 1 + i
                solved[question] = token, known_at + i, (known_at + i) / (question - 1)
        shown[key] = value, value_at
    return solved


def solve_selective_copy(task, tokens):
    marker = tokens.index(task.vocabulary - 1)
    read = [i for i in range(marker) if tokens[i] < task.vocabulary - 2]
    return {marker + 1 + n: (tokens[i], i, i / max(1, marker - 1)) for n, i in enumerate(read)}


def solve_compression(task, tokens):
    marker = tokens.index(task.vocabulary - 1)
    start = next(i for i in range(marker) if tokens[i] < task.vocabulary - 1)
    solved = {}
    for question in range(marker + 1, len(tokens)):
        place = start + tokens[question] - task.vocabulary - 1
        solved[question] = tokens[place], place, place / max(1, marker - 1)
    return solved


SOLVED = [
    (
        st.builds(MadRecallTask, n_pairs=st.just("all") | st.integers(1, 8), vocabulary=st.integers(16, 64)),
        solve_recall,
    ),
    (
        st.builds(
            MadNoisyRecallTask,
            n_pairs=st.just("all") | st.integers(1, 8),
            vocabulary=st.integers(32, 80),
            n_noise=st.integers(1, 16),
            noise=st.sampled_from([0.0, 0.2, 0.8, 0.99]),
        ),
        solve_recall,
    ),
    (
        st.builds(
            MadFuzzyRecallTask,
            vocabulary=st.integers(11, 40),
            key_tokens=st.integers(1, 5),
            value_tokens=st.integers(1, 5),
        ),
        solve_fuzzy,
    ),
    (
        st.builds(MadSelectiveCopyTask, n_tokens=st.integers(1, 40), vocabulary=st.integers(4, 30)),
        solve_selective_copy,
    ),
    (
        st.builds(MadCompressionTask, n_tokens=st.integers(1, 40), vocabulary=st.integers(3, 30)),
        solve_compression,
    ),
]


@pytest.mark.parametrize(
    ("tasks", "solve"), SOLVED, ids=["recall", "noisy_recall", "fuzzy_recall", "selective_copy", "compression"]
)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    data=st.data(),
    more=st.integers(0, 300),
    seed=st.integers(0, 99),
    split=st.sampled_from(["train", "validation", "eval"]),
)
def test_every_answer_is_what_a_reader_finds(tasks, solve, data, more, seed, split):
    task = data.draw(tasks)
    batch = task.sample(np.random.default_rng(seed), split, 3, task.min_length + more)
    check_solved(batch, lambda tokens: solve(task, tokens))


def test_keys_keep_their_values_and_the_last_key_was_shown():
    for task in (MadRecallTask(), MadNoisyRecallTask(noise=0.6), MadRecallTask(n_pairs=3)):
        n_keys = 8
        for length in (128, 127):
            batch = task.train_batch(0, 20, length, seed=0)
            for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
                pairs = [pair for pair in zip(tokens[::2], tokens[1::2]) if pair[0] < n_keys]
                assert len(set(pairs)) == len({key for key, _ in pairs}) <= task.load
                assert all(n_keys <= value < 2 * n_keys for _, value in pairs)
                last = 126
                assert targets[last] == dict(pairs)[tokens[last]]


def test_as_much_noise_as_asked_for():
    tokens = MadNoisyRecallTask(noise=0.4).train_batch(0, 50, 1000, seed=0).tokens
    noisy = tokens >= 16
    assert torch.equal(noisy[:, ::2], noisy[:, 1::2])
    assert 0.38 < noisy.float().mean() < 0.42 and not noisy[:, -2:].any()
    assert (torch.bincount(tokens[noisy])[16:] > 0).all()


@pytest.mark.parametrize("split", ["train", "eval"])
def test_motifs_keep_their_values_and_have_the_lengths_asked_for(split):
    task = MadFuzzyRecallTask()
    batch = task.sample(np.random.default_rng(0), split, 100, 128)
    key_sizes, value_sizes = [], []
    for tokens in batch.tokens.tolist():
        pairs = [(key, value) for (key, _), (value, _) in read_motifs(task, tokens)]
        assert len(set(pairs)) == len({key for key, _ in pairs})
        assert all(len(set(motif)) == len(motif) <= 3 for pair in pairs for motif in pair)
        assert pairs[-1] in pairs[:-1]
        assert (
            tokens.count(15) < 6 + 4
        )  # blanks: no other pair fitted, and the last is shorter than what was kept for it
        key_sizes += [len(key) for key, _ in pairs]
        value_sizes += [len(value) for _, value in pairs]
    shares = np.bincount(key_sizes, minlength=4)[1:] / len(key_sizes)
    np.testing.assert_allclose(shares, [1 / 3] * 3 if split == "train" else [0, 0, 1], atol=0.04)
    np.testing.assert_allclose(np.bincount(value_sizes)[1:] / len(value_sizes), [1 / 3] * 3, atol=0.04)


def test_selective_copying_spreads_the_symbols_over_the_context():
    task = MadSelectiveCopyTask()
    tokens = task.train_batch(0, 400, 256, seed=0).tokens
    assert (tokens[:, 239] == 15).all() and (tokens[:, 240:] == 14).all()
    shares = (tokens[:, :239] < 14).float().mean(dim=0)
    assert shares.sum().item() == pytest.approx(16, rel=1e-4)
    assert shares.min() > 0 and shares.max() < 4 * 16 / 239


def test_compression_asks_for_every_place_once():
    task = MadCompressionTask(n_tokens=5)
    tokens = task.train_batch(0, 20, 16, seed=0).tokens
    assert (tokens[:, :5] == task.blank_id).all() and (tokens[:, 10] == 15).all()
    assert torch.equal(tokens[:, 11:].sort(dim=1).values, torch.arange(17, 22).expand(20, -1))


def test_memorization_has_one_table_for_training_and_evaluation():
    task = MadMemorizationTask(vocabulary=64)
    known = {}
    for step in range(20):
        batch = task.train_batch(step, 8, 32, seed=0)
        assert (batch.tokens[:, 1::2] == 63).all() and (batch.targets[:, ::2] == IGNORE).all()
        for key, value in zip(batch.tokens[:, ::2].flatten().tolist(), batch.targets[:, 1::2].flatten().tolist()):
            assert known.setdefault(key, value) == value
    assert sorted(known) == list(range(31)) and len(set(known.values())) == 31
    assert min(known.values()) >= 31 and max(known.values()) <= 62
    for batch in task.eval_batches(33, 8, seed=9, batch=4):
        expected = [[known[token] for token in row[:32:2]] for row in batch.tokens.tolist()]
        assert batch.targets[:, 1::2].tolist() == expected
    values = np.random.default_rng(12345).permutation(np.arange(31, 63))
    assert [known[key] for key in range(31)] == values[:31].tolist()


def test_other_tables_and_fewer_facts():
    def drawn(**fields):
        batch = MadMemorizationTask(**fields).train_batch(0, 64, 64, seed=0)
        return dict(zip(batch.tokens[:, ::2].flatten().tolist(), batch.targets[:, 1::2].flatten().tolist()))

    assert sorted(drawn(n_facts=9)) == list(range(9))
    assert drawn(n_facts=9).items() <= drawn().items()
    assert drawn(table=1) != drawn()
