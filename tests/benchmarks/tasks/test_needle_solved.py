"""Needles, against readers that know the format and nothing of how sequences are made."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.benchmarks.tasks import IGNORE, NeedleNumberTask, NeedleTask
from mixerzoo.benchmarks.tasks.corpus import load_corpus

from .solved import check_solved


def read_needles(tokens, n_keys):
    """Each key's values with the places of its pairs, in order; the keys asked for, and the places of `[ask]` and of
    the questions."""
    ask = tokens.index(256)
    written = defaultdict(list)
    for i in range(ask):
        if 257 <= tokens[i] < 257 + n_keys:
            written[tokens[i]].append((tokens[i + 1], i))
    questions = [i for i in range(ask + 1, len(tokens)) if 257 <= tokens[i] < 257 + n_keys]
    return written, ask, questions


def solve_needles(task, tokens):
    """By scored position: the answer, its place, its depth."""
    written, ask, questions = read_needles(tokens, task.n_keys)
    solved = {}
    for question in questions:
        pairs = written[tokens[question]]
        for i, (value, place) in enumerate(pairs if task.values_per_key > 1 else pairs[-1:]):
            solved[question + i] = value, place + 1, place / (ask - 2)
    return solved


def solve_numbers(task, tokens):
    found = list(re.finditer(rb"\nThe number of ([A-Z]{4}) is (\d+)\.\n", bytes(tokens)))
    questions = found[len(found) - (task.n_needles if task.asked == "all" else task.asked) :]
    context = questions[0].start()
    written = {line[1]: line for line in found if line.start() < context}
    solved = {}
    for question in questions:
        line = written[question[1]]
        depth = line.start() / (context - len(line[0]))
        for i, digit in enumerate(line[2]):
            solved[question.start(2) + i - 1] = digit, line.start(2) + i, depth
    return solved


@st.composite
def needle_tasks(draw):
    n_needles = draw(st.integers(1, 20))
    several = draw(st.booleans())
    return NeedleTask(
        n_needles=n_needles,
        asked=draw(st.just("all") | st.integers(1, n_needles)),
        n_keys=draw(st.integers(30, 60)),
        n_values=draw(st.integers(4, 50)),
        values_per_key=draw(st.integers(1, 4)) if several else 1,
        distractors=draw(st.integers(0, 10)),
        overwrites=0.0 if several else draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


number_tasks = st.builds(
    NeedleNumberTask,
    n_needles=st.integers(3, 12),
    asked=st.just("all") | st.integers(1, 3),
    digits=st.integers(1, 8),
    distractors=st.integers(0, 30),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(needle_tasks(), st.integers(0, 600), st.integers(0, 99), st.sampled_from(["train", "validation", "eval"]))
def test_needles(task, more, seed, split):
    batch = task.sample(np.random.default_rng(seed), split, 3, task.min_length + more)
    check_solved(batch, lambda tokens: solve_needles(task, tokens))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(number_tasks, st.integers(0, 600), st.integers(0, 99), st.sampled_from(["train", "validation", "eval"]))
def test_numbers(task, more, seed, split):
    batch = task.sample(np.random.default_rng(seed), split, 3, task.min_length + more)
    check_solved(batch, lambda tokens: solve_numbers(task, tokens))


@pytest.mark.parametrize("task", [NeedleTask(), NeedleTask(n_needles=64, asked=8)])
def test_long_haystacks(task):
    check_solved(task.train_batch(0, 2, 20_000, seed=0), lambda tokens: solve_needles(task, tokens))


def test_needles_with_several_values_are_asked_for_all_of_them():
    task = NeedleTask(n_needles=5, asked=2, values_per_key=3, n_values=6)
    assert task.chance == pytest.approx((1 / 6 + 1 / 5 + 1 / 4) / 3)
    batch = task.train_batch(0, 50, 200, seed=0)
    assert ((batch.targets != IGNORE).sum(dim=1) == 6).all()
    for tokens in batch.tokens.tolist():
        written, ask, questions = read_needles(tokens, task.n_keys)
        assert ask == 200 - 1 - 2 * 4 and len(questions) == 2
        assert len(written) == 5 and all(len({value for value, _ in pairs}) == 3 for pairs in written.values())
        for question in questions:
            assert tokens[question + 1 : question + 4] == [value for value, _ in written[tokens[question]]]


def test_the_values_of_a_needle_are_spread_among_those_of_others():
    batch = NeedleTask(n_needles=8, values_per_key=2).train_batch(0, 100, 400, seed=0)
    between = []
    for tokens in batch.tokens.tolist():
        order = [token for token in tokens[: tokens.index(256)] if 257 <= token < 257 + 64]
        between += [len(order) - 1 - order[::-1].index(key) - order.index(key) for key in set(order)]
    assert 5 < np.mean(between) < 6.5  # of 16 places two at random are 17 / 3 apart


def test_some_needles_are_overwritten_and_the_last_value_counts():
    task = NeedleTask(n_needles=8, overwrites=0.5, distractors=4)
    overwritten_asked = 0
    for tokens in task.train_batch(0, 50, 300, seed=0).tokens.tolist():
        written, _, questions = read_needles(tokens, task.n_keys)
        assert Counter(len(pairs) for pairs in written.values()) == {2: 4, 1: 8}
        assert len({tokens[i] for i in questions}) == 8  # distractors are not asked for
        for key, pairs in written.items():
            assert len({value for value, _ in pairs}) == len(pairs)
            overwritten_asked += len(pairs) == 2 and key in {tokens[i] for i in questions}
    assert overwritten_asked == 50 * 4


def test_the_haystack_of_all_these_is_unbroken_text():
    text = load_corpus().train.data.tobytes()
    task = NeedleTask(n_needles=4, values_per_key=2, distractors=3)
    for tokens in task.train_batch(1, 8, 200, seed=0).tokens.tolist():
        haystack = [token for token in tokens if token < 256]
        assert len(haystack) == 200 - 2 * (8 + 3) - 1 - 4 * 3
        assert bytes(haystack) in text
    task = NeedleNumberTask(distractors=5)
    for tokens in task.train_batch(1, 8, 600, seed=0).tokens.tolist():
        haystack = re.sub(rb"\nThe number of [A-Z]{4} is \d{6}\.\n", b"", bytes(tokens))
        assert len(haystack) == 600 - 31 * 11
        assert haystack in text


def test_lines_that_look_like_needles_are_not_asked_for():
    task = NeedleNumberTask(n_needles=4, asked="all", distractors=8)
    for tokens in task.train_batch(0, 30, 1000, seed=0).tokens.tolist():
        keys = re.findall(rb"\nThe number of ([A-Z]{4}) is \d{6}\.\n", bytes(tokens))
        lines, asked = keys[:12], keys[12:]
        assert len(set(asked)) == 4 and all(lines.count(key) == 1 for key in asked)
        assert Counter(key[:3] for key in lines) == dict.fromkeys((key[:3] for key in asked), 3)


def test_the_papers_needles():
    task = NeedleNumberTask()
    batch = task.train_batch(0, 4, 4096, seed=0)
    assert ((batch.targets != IGNORE).sum(dim=1) == 6).all()
    assert task.vocab_size == 256 and task.chance == 0.1
    for tokens in batch.tokens.tolist():
        assert len(re.findall(rb"\nThe number of ([A-Z]{4}) is (\d{6})\.\n", bytes(tokens))) == 6
