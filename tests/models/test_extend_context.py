"""Attention reads texts longer than those of its training: a setting of the model after training."""

import pytest
import torch
from mixerzoo.models import LanguageModel, ModelConfig


def build(layout, **options):
    return LanguageModel(
        ModelConfig(layout, d_model=16, vocab_size=50, mixer_defaults={"softmax_attention": options})
    ).double()


@pytest.fixture
def tokens():
    return torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))


LAYOUT = "softmax_attention, sliding_window_attention(window=8)"


def test_it_is_the_option_of_the_mixer_set_afterwards(tokens):
    model = build(LAYOUT)
    before, old_state = model(tokens, return_state=True)
    model.extend_context(8, trained_length=16)
    expected = build(LAYOUT, positions="yarn", factor=8.0, trained_length=16)
    assert torch.equal(model(tokens)[0], expected(tokens)[0]) and not torch.equal(model(tokens)[0], before)
    assert model.signature == expected.signature
    # keys that were turned by other angles do not fit
    with pytest.raises(ValueError, match=r"positions='rope'.*cannot be continued by .*positions='yarn'"):
        model(tokens, old_state)
    _, state = model(tokens, return_state=True)
    model.extend_context(1, trained_length=16)
    with pytest.raises(ValueError, match=r"factor=8\.0.*cannot be continued by .*factor=1\.0"):
        model(tokens, state)
    assert torch.equal(model(tokens)[0], before)
    model(tokens, old_state)


def test_pieces_give_what_one_call_gives(tokens):
    model = build(LAYOUT)
    model.extend_context(4, trained_length=16)
    whole, _ = model.features(tokens)
    found, _ = model.read(tokens, chunk_size=7, scored=torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(found, whole.flatten(0, 1), rtol=1e-10, atol=1e-10)


def test_it_is_not_saved(tokens, tmp_path):
    model = build(LAYOUT)
    before = model(tokens)[0]
    model.extend_context(8, trained_length=16)
    model.save(tmp_path)
    loaded = LanguageModel.load(tmp_path)
    assert torch.equal(loaded(tokens)[0], before)
    loaded.extend_context(8, trained_length=16)
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("layout", ["sliding_window_attention", "gated_deltanet", "softmax_attention(positions=nope)"])
def test_models_without_such_angles_refuse(layout):
    with pytest.raises(ValueError, match="has angles that grow with the text"):
        build(layout).extend_context(2, trained_length=16)


@pytest.mark.parametrize(("factor", "trained_length"), [(0.5, 16), (float("inf"), 16), (2, 0)])
def test_settings_that_do_not_fit_change_nothing(factor, trained_length):
    model = build(LAYOUT)
    before = model.signature
    with pytest.raises(ValueError, match="must be"):
        model.extend_context(factor, trained_length)
    assert model.signature == before == model._describe()
