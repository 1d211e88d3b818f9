"""Tasks of random tokens, against readers that know the format and nothing of how sequences are made."""

import itertools
import re
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.benchmarks.tasks import (
    IGNORE,
    CopyTask,
    DomainShiftTask,
    InductionTask,
    PhonebookTask,
    StateTrackingTask,
    ZoologyMqarTask,
)

from .solved import check_solved


def solve_zoology(task, tokens, asked):
    """asked: where a value is scored, which filler of random keys cannot be told from."""
    pairs = {tokens[i]: i + 1 for i in range(0, 2 * task.n_pairs, 2)}
    last = max(1, task.n_pairs - 1)
    return {i: (tokens[pairs[tokens[i]]], pairs[tokens[i]], (pairs[tokens[i]] // 2) / last) for i in asked}


def solve_copy(task, tokens):
    marker = tokens.index(task.n_symbols + 1)
    read = [token for token in tokens[:marker] if token < task.n_symbols]
    assert tokens[: len(read)] == read == tokens[marker + 1 :]
    return {marker + i: (token, i, i / max(1, marker - 1)) for i, token in enumerate(read)}


def solve_induction(task, tokens):
    followed, solved = {}, {}
    for i, token in enumerate(tokens):
        if i:
            followed[tokens[i - 1]] = token, i
        if token in followed:
            answer, place = followed[token]
            solved[i] = answer, place, place / (i - 1)
    return solved


def solve_phonebook(task, tokens):
    text = "".join((string.ascii_uppercase + string.digits + ":;?_")[token] for token in tokens)
    book, questions = text.split("?")
    listed = {entry[1]: entry for entry in re.finditer(r"([A-Z]+):(\d+);", book)}
    solved = {}
    for question in re.finditer(r"([A-Z]+):(\d+);", questions):
        entry = listed[question[1]]
        depth = entry.start() / max(1, len(book) - len(entry[0]))
        for i, digit in enumerate(entry[2]):
            solved[len(book) + question.start(2) + i] = 26 + int(digit), entry.start(2) + i, depth
    return solved


def solve_domain_shift(task, tokens):
    n_domains = len(set(task.schedule))
    tables, solved, domain = {}, {}, None
    for i, token in enumerate(tokens):
        if token < n_domains:
            domain = token
        elif token < n_domains + task.n_keys:
            if (domain, token) in tables:
                answer, place = tables[domain, token]
                solved[i] = answer, place, place / (i - 1)
        else:
            tables[domain, tokens[i - 1]] = token, i
    return solved


SOLVED = [
    (
        st.builds(CopyTask, n_tokens=st.just("all") | st.integers(1, 40), n_symbols=st.integers(2, 40)),
        solve_copy,
    ),
    (
        st.builds(
            DomainShiftTask,
            n_pairs=st.integers(1, 20),
            schedule=st.text("ABCZ", min_size=1, max_size=5),
            n_keys=st.integers(20, 40),
            n_values=st.integers(4, 40),
        ),
        solve_domain_shift,
    ),
    (
        st.builds(InductionTask, n_distinct=st.integers(3, 30), n_symbols=st.integers(30, 90)),
        solve_induction,
    ),
    (
        st.builds(
            PhonebookTask,
            n_entries=st.just("all") | st.integers(3, 20),
            asked=st.integers(1, 3),
            name_letters=st.integers(1, 5),
            digits=st.integers(1, 8),
        ),
        solve_phonebook,
    ),
]
SPLITS = st.sampled_from(["train", "validation", "eval"])


@pytest.mark.parametrize(("tasks", "solve"), SOLVED, ids=[solve.__name__ for _, solve in SOLVED])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), more=st.integers(0, 400), seed=st.integers(0, 99), split=SPLITS)
def test_every_answer_is_what_a_reader_finds(tasks, solve, data, more, seed, split):
    task = data.draw(tasks)
    batch = task.sample(np.random.default_rng(seed), split, 3, task.min_length + more)
    check_solved(batch, lambda tokens: solve(task, tokens))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.builds(ZoologyMqarTask, n_pairs=st.integers(1, 30), vocabulary=st.sampled_from([64, 500, 8192])),
    st.integers(0, 200),
    st.integers(0, 99),
)
def test_zoology_mqar_with_random_filler(task, more, seed):
    batch = task.train_batch(0, 3, task.min_length + more, seed)
    for row, tokens in enumerate(batch.tokens.tolist()):
        asked = (batch.targets[row] != IGNORE).nonzero()[:, 0].tolist()
        assert sorted(tokens[i] for i in asked) == sorted(tokens[0 : 2 * task.n_pairs : 2])
        part = type(batch)(*(x[row : row + 1] for x in vars(batch).values()))
        check_solved(part, lambda tokens, asked=asked: solve_zoology(task, tokens, asked))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.sampled_from([64, 500, 8192]), st.integers(0, 200), st.integers(0, 99))
def test_zoology_mqar_with_blank_filler(n_pairs, vocabulary, more, seed):
    task = ZoologyMqarTask(n_pairs=n_pairs, vocabulary=vocabulary, random_non_queries=False)
    batch = task.train_batch(0, 3, task.min_length + more, seed)
    check_solved(batch, lambda t: solve_zoology(task, t, [i for i in range(2 * n_pairs, len(t)) if t[i] != 0]))
    keys, values = batch.tokens[:, : 2 * n_pairs : 2], batch.tokens[:, 1 : 2 * n_pairs : 2]
    assert keys.min() >= 1 and keys.max() < vocabulary // 2 <= values.min() and values.max() < vocabulary
    assert all(len(set(row.tolist())) == n_pairs for row in (*keys, *values))


def test_the_fillers_of_zoology_come_from_the_whole_vocabulary():
    tokens = ZoologyMqarTask(n_pairs=1, vocabulary=64).train_batch(0, 8, 1000, seed=0).tokens
    assert torch.bincount(tokens.flatten(), minlength=64).min() > 60


def compose(g, h):
    return tuple(g[place] for place in h)


def permutations(n_objects, even):
    def is_even(p):
        return sum(p[i] > p[j] for i, j in itertools.combinations(range(n_objects), 2)) % 2 == 0

    return [
        p
        for p in itertools.product(range(n_objects), repeat=n_objects)
        if len(set(p)) == n_objects and (not even or is_even(p))
    ]


@pytest.mark.parametrize(("group", "size"), [("s3", 6), ("a5", 60), ("s5", 120)])
@pytest.mark.parametrize("length", [1, 2, 37, 200])
def test_running_products_of_permutations(group, size, length):
    task = StateTrackingTask(group=group)
    elements = permutations(int(group[1]), even=group[0] == "a")
    assert len(elements) == task.vocab_size == size and task.chance == 1 / size
    batch = task.train_batch(0, 4, length, seed=0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        state = tuple(range(len(elements[0])))
        for token, target in zip(tokens, targets, strict=True):
            state = compose(elements[token], state)
            assert elements[target] == state


@pytest.mark.parametrize(("group", "order"), [("parity", 2), ("z60", 60)])
def test_running_sums(group, order):
    batch = StateTrackingTask(group=group).train_batch(0, 4, 333, seed=0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [total % order for total in itertools.accumulate(tokens)]


def test_every_position_of_state_tracking_is_scored_and_all_elements_come():
    batch = StateTrackingTask(group="s3").train_batch(0, 4, 200, seed=0)
    assert batch.targets.min() == batch.tokens.min() == 0 and batch.targets.max() == batch.tokens.max() == 5


@pytest.mark.parametrize("schedule", ["ABA", "A", "CABAC"])
@pytest.mark.parametrize("length", [600, 601, 1234])
def test_phases_and_rounds_tell_adaptation_from_retention(schedule, length):
    task = DomainShiftTask(n_pairs=5, schedule=schedule)
    phases, rounds = task.phases(length), task.rounds(length)
    batch = task.train_batch(0, 8, length, seed=0)
    markers = [i for i in range(length) if batch.tokens[0, i] < len(set(schedule))]
    assert (rounds[markers] == -1).all() and (rounds >= 0).sum() == length - len(schedule)
    assert phases[markers].tolist() == list(range(len(schedule))) and phases[0] == 0 and (np.diff(phases) >= 0).all()
    spans = np.diff([*markers, length])
    assert spans.max() - spans.min() <= 3
    assert (batch.tokens[:, markers] == torch.tensor(["ABC".index(letter) for letter in schedule])).all()
    scored = batch.targets != IGNORE
    for tokens, row, distances in zip(batch.tokens.tolist(), scored, batch.distances, strict=True):
        for phase, letter in enumerate(schedule):
            first_round = [i for i in range(length) if phases[i] == phase and rounds[i] == 0][::2]
            assert len({tokens[i] for i in first_round}) == 5  # each key once
            returns = letter in schedule[:phase]
            assert row[first_round].tolist() == [returns] * 5
            if returns:  # what is asked was shown before this phase began
                assert all(i - distances[i] < markers[phase] for i in first_round)
            later = [i for i in range(length) if phases[i] == phase and rounds[i] > 0 and row[i]]
            assert all(markers[phase] < i - distances[i] for i in later)


def test_domains_give_the_same_keys_different_values():
    task = DomainShiftTask(n_pairs=6, n_values=2)
    for tokens in task.train_batch(0, 20, 300, seed=0).tokens.tolist():
        shift, back = tokens.index(1), len(tokens) - 1 - tokens[::-1].index(0)
        first, second = (dict(zip(t[1::2], t[2::2])) for t in (tokens[:shift], tokens[shift:back]))
        assert first.keys() == second.keys() and len(first) == 6
        assert all(first[key] != second[key] for key in first)


def test_induction_draws_that_many_tokens_and_never_repeats_one_at_once():
    tokens = InductionTask(n_distinct=5, n_symbols=40).train_batch(0, 30, 500, seed=0).tokens
    assert all(len(set(row.tolist())) == 5 for row in tokens)
    assert (tokens[:, 1:] != tokens[:, :-1]).all()
    assert len(set(tokens.flatten().tolist())) == 40


def test_copies_and_phone_books_fill_the_length():
    assert (CopyTask().train_batch(0, 3, 41, seed=0).targets != IGNORE).sum().item() == 3 * 20
    task = PhonebookTask()
    tokens = task.train_batch(0, 3, 200, seed=0).tokens
    assert ((tokens == task.entry_end_id).sum(dim=1) == (200 - 1 - 13) // 13 + 1).all()
