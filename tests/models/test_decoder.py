"""A decoder gives what calling the model token by token gives, whatever the mixer, and says how."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card, small_options
from mixerzoo.mixers.stepping import description
from mixerzoo.models import LanguageModel, ModelConfig
from mixerzoo.models.decoder import Decoder
from mixerzoo.models.program import CannotRecordError, record
from torch import Tensor, nn

D_MODEL, VOCAB = 32, 29
RECORDED, AT_EDGES = "recorded", "recorded, called at edges"
PROMPT, NEW, ROOM = 21, 45, 70  # 45 tokens pass two edges of chunks of 16, and windows of 16 fill up


def build(layout, **options):
    options = {name: small_options(name) for name in list_mixers()} | options
    config = ModelConfig(layout, d_model=D_MODEL, n_layers=1, vocab_size=VOCAB, mixer_defaults=options)
    return LanguageModel(config).eval().double()


def layout_of(name):
    return f"identity | {name}@0" if mixer_card(name).role == "feed_forward" else name


def tokens(batch=2, time=NEW, seed=0):
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def one_by_one(model, state, following):
    """Logits after each token, and the last state, by the model itself."""
    found = []
    for token in following.unbind(1):
        logits, state = model(token[:, None], state, return_state=True)
        found.append(logits[:, -1])
    return torch.stack(found, 1), state


def steps(decoder, following):
    return torch.stack([decoder.step(token) for token in following.unbind(1)], 1)


def assert_equal_states(model, a, b):
    """Two states are one if the model goes on from both alike, and they hold as much."""
    assert a.position == b.position
    following = tokens(a.batch, 20, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(model(following, a)[0], model(following, b)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list_mixers())
def test_every_mixer_decodes_as_it_is_called(name):
    model, prompt, following = build(layout_of(name)), tokens(time=PROMPT), tokens(seed=1)
    with torch.no_grad():
        logits, prefilled = model(prompt, return_state=True)
    expected, after = one_by_one(model, prefilled, following)
    decoder = model.decoder(2, ROOM)
    torch.testing.assert_close(decoder.prefill(prompt), logits[:, -1], rtol=1e-9, atol=1e-9)
    middle = NEW // 2
    first = steps(decoder, following[:, :middle])
    taken = decoder.state
    torch.testing.assert_close(first, expected[:, :middle], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(steps(decoder, following[:, middle:]), expected[:, middle:], rtol=1e-9, atol=1e-9)
    assert_equal_states(model, decoder.state, after)
    # from a state in the middle, which going on has not changed, nor does another decoder
    for _ in range(2):
        other = model.decoder(2, ROOM)
        other.state = taken
        torch.testing.assert_close(steps(other, following[:, middle:]), expected[:, middle:], rtol=1e-9, atol=1e-9)
    assert decoder.position == PROMPT + NEW and all(decoder.how.values())
