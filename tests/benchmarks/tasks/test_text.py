"""Text as tokens: what is kept in the cache, how it is split, and what is said where something is missing.

Tokenizers are made here and local. The package `datasets` is not among the packages for tests, being large: a module
with the same `load_dataset(name, config, split=, streaming=, revision=)` stands in for it. The Hub is never reached.
"""

import hashlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from mixerzoo.benchmarks.tasks import IGNORE, Batch, TextDataset, TextTask, tokenised
from mixerzoo.benchmarks.tasks.corpus import held_out, load_corpus
from mixerzoo.benchmarks.tasks.tokenised import cache_folder, load_encoder, load_tokens
from pydantic import ValidationError

SPLITS = ("train", "validation", "eval")
TEXTS = [f"Document {i} says: the cat number {i} sat on the mat, and so on. " * (i % 7 + 1) for i in range(300)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and nothing remembered from the test before."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(tokenised, "cache_folder", lambda: folder)
    load_tokens.cache_clear()
    load_encoder.cache_clear()
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    """A byte-level BPE of 400 entries, trained here; its file would cut texts to 5 tokens if that were not undone."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `test` is not installed: it has tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    made.enable_truncation(5)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    made.save(str(path))
    made.no_truncation()
    return path, made


@pytest.fixture
def folder(tmp_path):
    """Text files, one of them not UTF-8."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for i, text in enumerate(TEXTS[:60]):
        (texts / f"{i}.txt").write_text(text)
    (texts / "latin.txt").write_bytes("café ".encode("latin-1") * 50)
    return str(texts)


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in for the package: streams TEXTS twice, and counts how often it was asked."""
    module = types.ModuleType("datasets")
    module.calls = []

    def load_dataset(name, config=None, *, split, streaming, revision):
        module.calls.append((name, config, split, streaming, revision))
        if name == "nobody/nothing":
            raise ConnectionError("no route to host")
        return ({"body": text, "n": i} for i, text in enumerate(TEXTS + TEXTS))

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def documents(text):
    return [tuple(d.tolist()) for d in np.split(text.data, np.cumsum(text.sizes)[:-1])]


def test_a_folder_is_tokenised_with_the_split_that_its_bytes_have(folder, tokenizer):
    path, made = tokenizer
    task = TextTask(text_folder=folder, tokenizer=str(path))
    corpus, tokens = load_corpus(folder), load_tokens(str(path), None, folder, 2**20)
    for split in SPLITS:
        in_bytes, in_tokens = corpus.split(split), tokens.split(split)
        texts = [bytes(d).decode(errors="replace") for d in documents(in_bytes)]
        assert documents(in_tokens) == [tuple(made.encode(text).ids) for text in texts]
        assert in_tokens.data.dtype == np.uint16 and isinstance(in_tokens.data, np.memmap)
    described = task.describe_text()
    assert described["eval_tokens"] == tokens.eval.data.size == sum(tokens.eval.sizes)
    assert described["bytes_per_token"] == described["eval_bytes"] / described["eval_tokens"]
    assert 2 < described["bytes_per_token"] < 20
    assert described["tokenizer"] == str(path) and folder in described["source"] and len(described["sha256"]) == 64
    assert task.vocab_size == made.get_vocab_size() and task.chance == 1 / task.vocab_size


def test_sequences_are_stretches_of_one_document_in_tokens(folder, tokenizer):
    path, made = tokenizer
    task = TextTask(text_folder=folder, tokenizer=str(path.parent))  # a folder that has a tokenizer.json
    batch = task.train_batch(0, 8, 12, seed=0)
    texts = [bytes(d).decode(errors="replace") for d in documents(load_corpus(folder).train)]
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    for tokens in batch.tokens.tolist():
        assert any(made.decode(tokens) in text for text in texts)
    with pytest.raises(ValueError, match=r"window of 100001 tokens is asked for"):
        task.train_batch(0, 1, 100_000, seed=0)


def test_what_was_made_is_kept_and_says_how(cache, folder, tokenizer, monkeypatch):
    path, made = tokenizer
    first = load_tokens(str(path), None, folder, 2**20)
    (kept,) = cache.iterdir()
    said = json.loads((kept / "made.json").read_text())
    request = json.dumps(said["request"], sort_keys=True).encode()
    assert kept.name == hashlib.sha256(request).hexdigest()[:32]
    assert said["request"]["tokenizer"] == hashlib.sha256(made.to_str().encode()).hexdigest()
    assert said["request"]["source"] == {"text": load_corpus(folder).sha256} and said["request"]["max_tokens"] == 2**20
    assert said["dtype"] == "uint16" and said["vocab_size"] == made.get_vocab_size()
    assert sum(said["splits"][split]["documents"] for split in SPLITS) == 61
    load_tokens.cache_clear()
    monkeypatch.setattr(tokenised, "_write", None)  # what is there is not made again
    again = load_tokens(str(path), None, folder, 2**20)
    assert documents(again.eval) == documents(first.eval) and again.describe() == first.describe()


def test_what_differs_is_made_anew(cache, folder, tokenizer):
    path, made = tokenizer
    load_tokens(str(path), None, folder, 2**20)
    load_tokens(str(path), None, folder, 2**19)
    made.add_tokens(["cat"])
    made.save(str(path))
    for remembered in (load_tokens, load_encoder):
        remembered.cache_clear()
    load_tokens(str(path), None, folder, 2**20)
    assert len(list(cache.iterdir())) == 3  # and nothing half made beside them


def test_a_dataset_is_split_by_the_hash_of_its_documents(datasets, tokenizer):
    path, made = tokenizer
    dataset = TextDataset(name="somebody/texts", config="small", split="train[:9]", column="body", revision="v1")
    tokens = load_tokens(str(path), dataset, None, 2**20)
    assert datasets.calls == [("somebody/texts", "small", "train[:9]", True, "v1")]
    expected = {split: [] for split in SPLITS}
    for text in TEXTS:  # and no document twice
        share = int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256
        expected["eval" if share < 0.1 else "validation" if share < 0.2 else "train"].append(
            tuple(made.encode(text).ids)
        )
    assert {split: documents(tokens.split(split)) for split in SPLITS} == expected
    assert min(map(len, expected.values())) > 10
    n_bytes = sum(len(made.decode(list(document))) for document in expected["eval"])
    assert tokens.made["splits"]["eval"]["bytes"] == n_bytes
    assert TextTask(dataset=dataset, tokenizer=str(path)).train_batch(0, 2, 8, seed=0).tokens.shape == (2, 8)


def test_a_dataset_without_a_tokenizer_is_bytes(datasets):
    task = TextTask(dataset={"name": "somebody/texts", "column": "body"}, max_tokens=20_000)
    assert task.vocab_size == 256 and task.describe_text()["bytes_per_token"] == 1
    batch = next(task.eval_batches(30, 3, seed=0, batch=3))
    assert all(any(bytes(tokens) in text.encode() for text in TEXTS) for tokens in batch.tokens.tolist())
    tokens = load_tokens(None, task.dataset, None, 20_000)
    assert tokens.train.data.dtype == np.uint8
    sizes = {split: tokens.split(split).data.size for split in SPLITS}
    assert sizes["train"] <= 16_000 and max(sizes["validation"], sizes["eval"]) <= 2_000
    assert sizes["train"] > 15_000  # until a document does not fit


def test_a_large_vocabulary_takes_four_bytes_a_token(datasets, monkeypatch):
    ids = {text: [70_000 + i, 3] for i, text in enumerate(TEXTS)}
    encoder = tokenised.Encoder("wide", 2**17, "0" * 64, lambda texts: [ids[text] for text in texts])
    monkeypatch.setattr(tokenised, "load_encoder", lambda name: encoder)
    tokens = load_tokens("wide", TextDataset(name="somebody/texts", column="body"), None, 10_000)
    assert tokens.train.data.dtype == np.uint32 and tokens.train.data.max() >= 70_000
    assert set(tokens.train.sizes.tolist()) == {2}


def test_a_local_dataset_that_changes_is_read_again(cache, datasets, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text("{}")
    dataset = TextDataset(name=str(tmp_path / "data"), column="body")
    for content in ("{}", "{ }"):
        (tmp_path / "data" / "a.json").write_text(content)
        load_tokens.cache_clear()
        load_tokens(None, dataset, None, 20_000)
    assert len(datasets.calls) == len(list(cache.iterdir())) == 2


def test_what_cannot_be_read_is_said_with_what_to_do(cache, datasets, monkeypatch):
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be read \(ConnectionError: no route.*local folder"):
        load_tokens(None, TextDataset(name="nobody/nothing"), None, 1000)
    with pytest.raises(ValueError, match=r"no text in the column 'text'; its columns are 'body', 'n'"):
        load_tokens(None, TextDataset(name="somebody/texts"), None, 1000)
    with pytest.raises(ValueError, match=r"max_tokens=100 there is no document for validation, eval"):
        load_tokens(None, TextDataset(name="somebody/texts", column="body"), None, 100)
    assert not list(cache.iterdir())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets.*pip install -e '\.\[text\]'"):
        load_tokens(None, TextDataset(name="somebody/else"), None, 1000)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs the package tokenizers"):
        TextTask(tokenizer="gpt2").vocab_size  # noqa: B018
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(ValueError, match=r"needs the package platformdirs"):
        cache_folder()


def test_a_tokenizer_that_cannot_be_loaded_is_named(monkeypatch):
    def unreachable(name):
        raise Exception("no route to host")

    package = types.SimpleNamespace(Tokenizer=types.SimpleNamespace(from_pretrained=unreachable))
    monkeypatch.setitem(sys.modules, "tokenizers", package)
    with pytest.raises(ValueError, match=r"'gpt2' cannot be loaded \(no route to host\); name a tokenizer\.json"):
        load_encoder("gpt2")


def test_a_tokenizer_by_name_is_asked_of_the_hub(tokenizer, monkeypatch):
    made = tokenizer[1]
    asked = []
    package = types.SimpleNamespace(
        Tokenizer=types.SimpleNamespace(from_pretrained=lambda name: (asked.append(name), made)[1])
    )
    monkeypatch.setitem(sys.modules, "tokenizers", package)
    assert load_encoder("somebody/tokenizer").encode([TEXTS[0]]) == [made.encode(TEXTS[0]).ids]
    assert asked == ["somebody/tokenizer"]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"text_folder": "a", "dataset": {"name": "b"}}, "text_folder 'a' and dataset 'b': give one"),
        ({"max_tokens": 100}, "max_tokens=100 is for a tokenizer or a dataset"),
        ({"dataset": {"name": "b", "subset": "c"}}, "subset"),
    ],
)
def test_parameters_that_cannot_be_are_refused(fields, match):
    with pytest.raises(ValidationError, match=match):
        TextTask(**fields)


def test_without_a_tokenizer_nothing_is_kept_and_a_token_is_a_byte(cache):
    described = TextTask().describe_text()
    assert described.pop("bytes_per_token") == 1 and described == load_corpus().describe()
    assert not cache.exists()


def test_the_cache_is_in_the_user_s_cache_directory():
    platformdirs = pytest.importorskip("platformdirs", reason="the extra `test` is not installed: it has platformdirs")
    assert str(cache_folder()).startswith(platformdirs.user_cache_dir()) and cache_folder().name == "text"


@pytest.mark.parametrize("sizes", [[1, 1, 1], [100, 1, 1], [1, 1, 100], [5] * 40])
def test_every_split_gets_a_document(sizes):
    first, second = held_out(sizes)
    assert 1 <= first < second < len(sizes)


@pytest.mark.parametrize("split", SPLITS)
def test_packed_documents_lie_end_to_end_and_nothing_is_predicted_across_an_edge(folder, tokenizer, split):
    path, _ = tokenizer
    task = TextTask(text_folder=folder, tokenizer=str(path), packing="documents")
    text = load_tokens(str(path), None, folder, 2**25).split(split)
    flat, starts = text.data.tolist(), set((np.cumsum(text.sizes) - text.sizes).tolist())
    (batch,) = task.eval_batches(60, 4, 0, 4, split) if split != "train" else [task.train_batch(0, 4, 60, seed=0)]
    for tokens, targets, begins in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.documents.tolist()):
        places = [i for i in range(len(flat) - 60) if flat[i : i + 60] == tokens]  # texts repeat themselves
        expected = [
            (
                [i == place or i in starts for i in range(place, place + 60)],
                [IGNORE if i + 1 in starts else flat[i + 1] for i in range(place, place + 60)],
            )
            for place in places
        ]
        assert (begins, targets) in expected
    assert batch.documents.sum() > 4 and (batch.targets == IGNORE).any()  # there are edges within rows
    edges = batch.edges
    assert edges[0] == 0 and edges[-1] == 240 and {60, 120, 180} < set(edges)
    assert len(edges) == batch.documents.sum() + 1


def test_packing_reads_documents_that_are_shorter_than_a_sequence(folder):
    task = TextTask(text_folder=folder, packing="documents")
    longest = load_corpus(folder).train.sizes.max()
    with pytest.raises(ValueError, match="but the longest is"):
        TextTask(text_folder=folder).train_batch(0, 1, longest, seed=0)
    assert task.train_batch(0, 1, longest, seed=0).documents.sum() > 1
    assert TextTask(text_folder=folder).train_batch(0, 1, 20, seed=0).edges is None


def test_batches_with_documents_can_be_joined_and_taken_apart(folder):
    batch = TextTask(text_folder=folder, packing="documents").train_batch(0, 4, 300, seed=0)
    halves = [batch.map(lambda t, rows=rows: t[rows]) for rows in (slice(0, 1), slice(1, 4))]
    joined = Batch.cat(halves)
    assert torch.equal(joined.documents, batch.documents) and torch.equal(joined.targets, batch.targets)
    assert halves[0].edges[-1] == 300 and batch.edges == halves[0].edges + [300 + edge for edge in halves[1].edges[1:]]
