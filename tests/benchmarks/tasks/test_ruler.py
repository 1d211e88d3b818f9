"""RULER: every label against a solver that reads the bytes alone, and the settings of the paper."""

import json
import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from mixerzoo.benchmarks.tasks import (
    IGNORE,
    RULER,
    RulerCommonWordsTask,
    RulerFrequentWordsTask,
    RulerNiahTask,
    RulerQaTask,
    RulerVariablesTask,
)
from mixerzoo.benchmarks.tasks.ruler_bytes import draw_distinct, insertion_points, merge, starts_within
from mixerzoo.benchmarks.tasks.ruler_counts import list_width, zeta_counts, zeta_shares
from mixerzoo.benchmarks.tasks.ruler_niah import Variant
from mixerzoo.benchmarks.tasks.ruler_qa import load_questions

VARIANTS = get_args(Variant)
WORDINGS = ("paper", "short")
SPLITS = ("train", "validation", "eval")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def solve_niah(context, question):
    """Answers in order, from `One of ... for KEY is: VALUE.` or `KEY is VALUE.`"""
    key, value = rf"{UUID}|[a-z]{{6}}-[a-z]{{6}}", rf"{UUID}|\d{{7}}"
    if "magic" in question:
        pairs = re.findall(rf"One of the special magic (?:numbers|uuids) for ({key}) is: ({value})\.", context)
        asked = re.split(", and |, ", re.search(r"for (.+?) mentioned", question)[1])
    else:
        pairs = re.findall(rf"({key}) is ({value})\.", context)
        asked = question.partition("?")[0].split(", ")
    return [value for wanted in asked for key, value in pairs if key == wanted], ", "


def solve_variables(context, question):
    """All names that lead to the value asked for, in the order of their statements."""
    known, wanted = {}, re.search(r"\d{5}", question)[0]
    for name, value in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", context):
        known[name] = known.get(value, value)
    return [name for name, value in known.items() if value == wanted], " "


def solve_common_words(context, question):
    """The words that stand most often, in the order of their first places."""
    numbered = re.findall(r"\d+\. ([a-z]{6})\b", context)
    words = numbered or context.split()
    n = int(re.search(r"(\d+) most", question)[1]) if numbered else len(question.split()) - 1
    counts = Counter(words)
    (_, least), *rest = counts.most_common()[n - 1 :]
    assert rest and rest[0][1] < least
    common = [word for word in counts if counts[word] >= least]
    return ([f"{i + 1}. {word}" for i, word in enumerate(common)] if numbered else common), " "


def solve_frequent_words(context, question):
    """The words that stand most often, the most frequent first, without the dots."""
    words = re.findall(r"(?<![a-zA-Z])[a-z]{6}(?![a-zA-Z.])", context.partition("coded words. ")[2] or context)
    said = re.search(r"the (three|\d+) most", question)
    n = (3 if said[1] == "three" else int(said[1])) if said else len(question.split()) - 1
    ranks = Counter(words).most_common()
    heads = [count for _, count in ranks[: n + 1]]
    assert heads == sorted(set(heads), reverse=True)
    return [word for word, _ in ranks[:n]], " "


def solve_qa(context, question):
    """The colour of the box that the thing is in, by two sentences that stand in different documents."""
    box = re.search(rf"{re.search(r'thing-[0-9]+', question)[0]} is in (box-\d+)\.", context)[1]
    return [re.search(rf"{box} is ([a-z]+)\.", context)[1]], " "


SOLVERS = {
    RulerNiahTask: solve_niah,
    RulerVariablesTask: solve_variables,
    RulerCommonWordsTask: solve_common_words,
    RulerFrequentWordsTask: solve_frequent_words,
    RulerQaTask: solve_qa,
}


def solve(task_type, tokens):
    """What the targets of `tokens [time]` must be, and nothing else is known but the kind of task."""
    text = bytes(tokens.tolist()).decode("latin-1")
    context, _, question = text.rpartition("\n")
    answers, between = SOLVERS[task_type](context, question)
    end = between.join(answers)
    assert answers and text.endswith(" " + end)
    targets = torch.full_like(tokens, IGNORE)
    place = len(text) - len(end)
    for answer in answers:
        for i in range(len(re.match(r"\d{1,3}\. ", answer)[0]) if re.match(r"\d{1,3}\. ", answer) else 0, len(answer)):
            targets[place + i - 1] = ord(answer[i])
        place += len(answer) + len(between)
    return targets


def assert_solved(task, batch):
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        assert torch.equal(solve(type(task), tokens), targets), bytes(tokens.tolist())


def assert_places(task, batch):
    """Every answer stands where its distance says, its depth is that place, and all come after the context."""
    rows, asked = (batch.targets != IGNORE).nonzero(as_tuple=True)
    found = asked - batch.distances[rows, asked]
    assert (batch.distances[rows, asked] > 0).all() and not batch.distances[batch.targets == IGNORE].any()
    assert torch.equal(batch.tokens[rows, found], batch.targets[rows, asked])
    context = task.context_length(batch.tokens.shape[1])
    assert (asked >= context).all() and (found < context).all()
    depths = batch.depths[rows, asked]
    assert batch.depths[batch.targets == IGNORE].isnan().all()
    if isinstance(task, RulerCommonWordsTask | RulerFrequentWordsTask):
        assert depths.isnan().all()
    else:
        assert depths.min() >= 0 and depths.max() <= 1
        # the depth is that of the first byte of the answer
        assert ((found - depths * (context - 1)) > -0.1).all() and ((found - depths * (context - 1)) < 36).all()


@pytest.fixture(scope="module")
def qa_file(tmp_path_factory):
    """Questions that take two documents each, of different sizes; an answer is a list, another a string."""
    path = tmp_path_factory.mktemp("qa") / "questions.jsonl"
    colours = ["red", "green", "blue", "yellow"]
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(60):
            colour = colours[rng.integers(4)]
            documents = [f"We know that thing-{i} is in box-{i}." + " Really." * (i % 5), f"And box-{i} is {colour}."]
            answer = [colour, "another"] if i % 2 else colour
            line = {"question": f"What is the colour of thing-{i}?", "contexts": documents, "answer": answer}
            file.write(json.dumps(line) + "\n")
    return str(path)


TASKS = [
    *(RulerNiahTask(variant=variant, wording=wording) for variant in VARIANTS for wording in WORDINGS),
    *(RulerVariablesTask(haystack=haystack, wording=w) for haystack in ("noise", "essay") for w in WORDINGS),
    *(RulerVariablesTask(n_chains=3, n_hops=2, haystack=haystack) for haystack in ("noise", "essay")),
    *(RulerCommonWordsTask(wording=wording) for wording in WORDINGS),
    RulerCommonWordsTask(n_common=1, frequencies=(2, 1)),
    *(RulerFrequentWordsTask(wording=wording) for wording in WORDINGS),
    RulerFrequentWordsTask(alpha=1.5, n_frequent=5),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_solver_that_reads_the_bytes_alone_finds_every_target(task):
    shortest = task.min_length
    for step, length in enumerate((shortest, shortest + 1, shortest + 97, shortest + 613, 3 * shortest, 6000)):
        batch = task.train_batch(step, 6, length, seed=0)
        assert all(x.shape == (6, length) for x in vars(batch).values())
        assert_solved(task, batch)
        assert_places(task, batch)
    for split in ("validation", "eval"):
        for batch in task.eval_batches(2 * shortest + 50, 6, seed=1, batch=3, split=split):
            assert_solved(task, batch)
            assert_places(task, batch)


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_solver_answers_the_questions_of_a_file(qa_file, wording):
    task = RulerQaTask(qa_file=qa_file, wording=wording)
    for step, length in enumerate((task.min_length, task.min_length + 40, 900, 5000)):
        batch = task.train_batch(step, 12, length, seed=0)
        assert_solved(task, batch)
        assert_places(task, batch)
    for split in ("validation", "eval"):
        assert_solved(task, next(task.eval_batches(1500, 8, seed=0, batch=8, split=split)))


@pytest.mark.parametrize(
    ("task", "loads"),
    [
        (RulerNiahTask(variant="multikey_1"), (1, 3, 16)),
        (RulerNiahTask(variant="multivalue", wording="short"), (1, 2, 16)),
        (RulerNiahTask(variant="multiquery"), (1, 2, 16)),
        (RulerVariablesTask(wording="short"), (5, 20, 100)),
        (RulerCommonWordsTask(wording="short"), (1, 20)),
        (RulerFrequentWordsTask(wording="short"), (1, 6)),
    ],
    ids=repr,
)
def test_other_loads_are_solved_too(task, loads):
    for load in loads:
        loaded = task.with_load(load)
        assert loaded.load == load and loaded.with_load(task.load).min_length == task.min_length
        batch = loaded.train_batch(load, 4, loaded.min_length + 500, seed=0)
        assert_solved(loaded, batch)
        assert_places(loaded, batch)


def test_a_load_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"single_1.*multikey_1"):
        RulerNiahTask().with_load(2)
    with pytest.raises(ValueError, match="its haystack is made of needles"):
        RulerNiahTask(variant="multikey_3").with_load(2)
    with pytest.raises(ValueError, match="take a multiple of 5"):
        RulerVariablesTask().with_load(8)
    assert RulerNiahTask(variant="multikey_2").load is None
    with pytest.raises(ValueError, match=r"frequencies.*\[30, 3\]"):
        RulerCommonWordsTask(frequencies=(3, 3))


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_length_that_is_too_short_is_refused(task):
    with pytest.raises(ValueError, match=f"length >= {task.min_length}"):
        task.train_batch(0, 2, task.min_length - 1, seed=0)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_batches_are_a_function_of_their_arguments(task):
    length = task.min_length + 200
    tokens = task.train_batch(3, 4, length, seed=5).tokens
    assert torch.equal(tokens, task.train_batch(3, 4, length, seed=5).tokens)
    assert not torch.equal(tokens, task.train_batch(4, 4, length, seed=5).tokens)
    one_by_one = torch.cat([b.tokens for b in task.eval_batches(length, 5, seed=5, batch=1)])
    assert torch.equal(one_by_one, torch.cat([b.tokens for b in task.eval_batches(length, 5, seed=5, batch=4)]))


@pytest.mark.parametrize("task", [t for t in TASKS if t.wording == "short"], ids=repr)
def test_chance_is_what_the_best_guess_without_reading_gets(task):
    batch = task.train_batch(0, 3000, task.min_length, seed=0)
    asked = (batch.targets != IGNORE)[0].nonzero()[:, 0]
    best = [torch.bincount(batch.targets[:, i]).max().item() / 3000 for i in asked]
    assert np.mean(best) == pytest.approx(task.chance, abs=0.012)


def test_evaluation_deals_needles_over_the_quarters():
    task = RulerNiahTask(variant="multivalue", n_needles=8, wording="short")
    (batch,) = task.eval_batches(20_000, 40, seed=0, batch=40)
    quarters = torch.histc(batch.depths[batch.targets != IGNORE], 4, 0, 1) / 7  # bytes of a number
    assert (quarters - 80).abs().max() <= 4  # white space before a wished place may be in the quarter before


def test_needles_stand_after_white_space_of_unbroken_text():
    task = RulerNiahTask(variant="multikey_1")
    for tokens in task.train_batch(0, 20, 2000, seed=0).tokens:
        text = bytes(tokens.tolist()).decode("latin-1")
        opening = "A special magic number is hidden within the following text. Make sure to memorize it. "
        assert text.startswith(opening + "I will quiz you about the number afterwards.\n")
        before = [text[found.start() - 1] for found in re.finditer("One of the special", text)]
        assert len(before) == 4 and all(sign in " \n\t\r" for sign in before)


def test_a_haystack_of_needles_has_as_many_as_fit_and_no_key_twice():
    for variant, kind in (("multikey_2", "numbers"), ("multikey_3", "uuids")):
        task = RulerNiahTask(variant=variant)
        text = bytes(task.train_batch(0, 1, 200_000, seed=0).tokens[0].tolist()).decode()
        keys = re.findall(rf"One of the special magic {kind} for (\S+) is", text)
        width = len(text.splitlines()[-3]) + 1
        assert len(keys) == len(set(keys)) == 1 + (200_000 - task.min_length) // width


def test_the_paper_s_numbers_of_words():
    task = RulerCommonWordsTask()
    counts = [
        Counter(Counter(re.findall(r"\d+\. ([a-z]{6})\b", text.rpartition("\n")[0])).values())
        for length in (4095, 8000)
        for text in [bytes(task.train_batch(0, 1, length, seed=0).tokens[0].tolist()).decode()]
    ]
    assert [sorted(c) for c in counts] == [[1, 6], [3, 30]]
    assert counts[0][6] == counts[1][30] == 10
    # what does not fit with the paper's frequencies has those of short sequences, however long
    many = RulerCommonWordsTask(n_common=40)
    assert many.min_length < 4096 and many.train_batch(0, 1, 5000, seed=0).tokens.shape == (1, 5000)


def test_frequent_words_follow_the_zeta_distribution():
    assert zeta_shares(2.0, 3).tolist() == pytest.approx([6 / np.pi**2 / k**2 for k in (1, 2, 3)])
    counts = zeta_counts(2.0, 1000, 100_000)
    assert list_width(int(counts.sum()), False) <= 100_000 < list_width(int(counts.sum()) + 40, False)
    assert counts[:3] / counts.sum() == pytest.approx(zeta_shares(2.0, 3), abs=0.02)
    text = bytes(RulerFrequentWordsTask().train_batch(0, 1, 20_000, seed=0).tokens[0].tolist()).decode()
    words = text.rpartition("\n")[0].partition("coded words. ")[2].split()
    assert Counter(words).most_common(1)[0][0] == "......" and len(set(words)) <= 20_000 // 50


@pytest.mark.parametrize("numbered", [True, False])
def test_the_width_of_a_list(numbered):
    for n in (0, 1, 9, 10, 11, 99, 100, 1234):
        words = " ".join(f"{i + 1}. badiku" if numbered else "badiku" for i in range(n))
        assert list_width(n, numbered) == len(words)


def test_the_thirteen_tasks_have_the_settings_of_the_paper(qa_file):
    names = [f"niah_{variant}" for variant in VARIANTS] + ["vt", "cwe", "fwe", "qa_1", "qa_2"]
    assert list(RULER) == names and len(names) == 13
    loads = [RULER[name].load for name in names]
    assert loads == [1, 1, 1, 4, None, None, 4, 4, 5, 10, 3, None, None]
    for task in RULER.values():
        given = task.model_copy(update={"qa_file": qa_file}) if isinstance(task, RulerQaTask) else task
        batch = given.train_batch(0, 1, 4096, seed=0)
        assert_solved(given, batch)
        assert given.vocab_size == 256 and 0 < given.chance < 0.6


def test_a_batch_of_a_million_tokens(qa_file):
    for task in [*(RULER[name] for name in ("niah_multikey_2", "vt", "cwe", "fwe")), RulerQaTask(qa_file=qa_file)]:
        batch = task.train_batch(0, 1, 2**20, seed=0)
        assert_solved(task, batch)
        assert_places(task, batch)


def test_questions_are_split_by_their_documents(qa_file):
    file = load_questions(qa_file)
    questions = [set(file.split(split).questions) for split in SPLITS]
    assert [len(q) for q in questions] == [48, 6, 6] and len(set.union(*questions)) == 60
    documents = [set(file.split(split).documents) for split in SPLITS]
    assert not (documents[0] & documents[1] or documents[0] & documents[2] or documents[1] & documents[2])
    assert 0 < RulerQaTask(qa_file=qa_file).chance < 1
    assert RulerQaTask(qa_file=qa_file).describe_text()["sha256"] == file.sha256


def test_few_documents_are_repeated_and_the_question_s_own_are_not(tmp_path):
    path = tmp_path / "three.jsonl"
    lines = [{"question": f"{i}?", "context": f"thing-{i} is box-{i}.", "answer": f"box-{i}"} for i in range(9)]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    batch = RulerQaTask(qa_file=str(path), wording="short").train_batch(0, 4, 2000, seed=0)
    for tokens in batch.tokens:
        context, _, question = bytes(tokens.tolist()).decode().rpartition("\n")
        documents = Counter(context.split())
        own = question.partition("?")[0]
        assert documents[f"thing-{own}"] == 1 and len(context.lstrip("\n")) > 1900
        assert set(documents.values()) - {1} and len([d for d in documents if d.startswith("thing-")]) == 7


def test_a_file_of_questions_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"needs qa_file.*SQuAD and HotpotQA do not come"):
        RULER["qa_1"].check_length(4096)
    with pytest.raises(ValueError, match=r"nowhere\.jsonl.*is not a file"):
        RulerQaTask(qa_file=str(tmp_path / "nowhere.jsonl")).check_length(4096)
    path = tmp_path / "wrong.jsonl"
    good = json.dumps({"question": "Who?", "context": "A.", "answer": "She"})
    for line, match in (("not json", "line 2: the line"), ('{"question": "?", "answer": "a"}', "line 2: contexts")):
        path.write_text(f"{good}\n{line}\n")
        load_questions.cache_clear()
        with pytest.raises(ValueError, match=match):
            load_questions(str(path))
    path.write_text(good)
    with pytest.raises(ValueError, match="about 1 different sets of documents; at least three"):
        load_questions(str(path))


def test_where_pieces_go():
    text = np.frombuffer(b"ab cd ef" + b"one word", dtype=np.uint8).reshape(2, 8)
    points = insertion_points(text, np.array([[0.0, 0.4, 0.99], [0.2, 0.5, 0.9]]), b" ")
    assert points.tolist() == [[0, 3, 6], [0, 4, 4]]
    widths = np.array([1, 2, 1])
    starts = starts_within(points, widths)
    pieces = [np.full((2, 3, w), ord(sign), dtype=np.uint8) for w, sign in ((1, "1"), (2, "2"))]
    merged = merge(text, [(starts[:, [0, 2]], pieces[0][:, :2]), (starts[:, [1]], pieces[1][:, :1])])
    assert [bytes(row) for row in merged] == [b"1ab 22cd 1ef", b"1one 221word"]


def test_drawn_numbers_are_distinct():
    drawn = draw_distinct(np.random.default_rng(0), 50, 40, 30)
    assert all(len(set(row)) == 30 for row in drawn.tolist()) and len({tuple(r) for r in drawn.tolist()}) == 50
