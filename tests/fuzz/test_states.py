"""States, models and resume points whose bytes or JSON were changed: loaded or refused, and nothing is run or read."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.mixers import MixerState, create_mixer
from mixerzoo.models import LanguageModel, ModelConfig

from .fuzzing import as_json, ends_well, fuzz, mutated, mutated_bytes

MIXERS = {
    "softmax_attention": {"heads": 2},
    "gated_deltanet": {"heads": 2},
    "fwpkm": {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 2, "chunk_size": 4},
}


def with_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose JSON header, or the JSON within its metadata, has changed places."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    name = rng.choice(sorted(metadata)) if metadata and rng.random() < 0.7 else None
    if name is None:
        header = mutated(header, rng)
    else:
        metadata[name] = as_json(mutated(json.loads(metadata[name]), rng)).decode()
    changed = as_json(header)
    return struct.pack("<Q", len(changed)) + changed + content[8 + size :]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, bytes, Path]]:
    """Mixers, the files of their states, and where to put changed ones."""
    folder, found = tmp_path_factory.mktemp("states"), []
    for name, options in MIXERS.items():
        mixer = create_mixer(name, 16, **options).eval()
        with torch.no_grad():
            _, state = mixer(torch.randn(2, 6, 16), return_state=True)
        state.save(folder / name)
        found.append((mixer, (folder / name).read_bytes(), folder / "changed"))
    return found


@fuzz(250)
@given(st.randoms(use_true_random=False))
def test_a_changed_state_is_loaded_or_refused(states: list[tuple[Any, bytes, Path]], rng: random.Random) -> None:
    _, content, path = rng.choice(states)
    path.write_bytes(with_header(content, rng) if rng.random() < 0.7 else mutated_bytes(content, rng))
    state = ends_well(lambda: MixerState.load(path))
    if state is not None:
        assert isinstance(state, MixerState)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Path]:
    """The files of a small model, and a folder for changed ones."""
    folder = tmp_path_factory.mktemp("model")
    LanguageModel(ModelConfig("linear_attention", d_model=8, n_layers=1, vocab_size=16)).save(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}, folder


@fuzz(120)
@given(st.randoms(use_true_random=False))
def test_a_changed_model_is_loaded_or_refused(model: tuple[dict[str, bytes], Path], rng: random.Random) -> None:
    files, folder = model
    for name, content in files.items():
        (folder / name).write_bytes(content)
    name = rng.choice(sorted(files))
    if name.endswith(".json") and rng.random() < 0.7:
        changed = as_json(mutated(json.loads(files[name]), rng))
    elif name.endswith(".safetensors") and rng.random() < 0.5:
        changed = with_header(files[name], rng)
    else:
        changed = mutated_bytes(files[name], rng)
    (folder / name).write_bytes(changed)
    ends_well(lambda: LanguageModel.load(folder))
