"""Generation from prompts of different lengths, padded on the left: each is continued as if it were alone."""

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card
from mixerzoo.models import LanguageModel, language_model, preset_config

LENGTHS = [7, 1, 12, 7]


def layout(mixer):
    return mixer if mixer_card(mixer).role == "mixer" else f"softmax_attention | {mixer}@0"


@pytest.fixture
def prompt():
    return torch.randint(512, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def seen(monkeypatch):
    """Every logit that a token was drawn from."""
    logits, draw = [], language_model.sample
    monkeypatch.setattr(language_model, "sample", lambda found, *rest: (logits.append(found), draw(found, *rest))[1])
    return logits


@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_continues_each_prompt_as_if_it_were_alone(mixer, prompt, seen):
    model = LanguageModel(preset_config("nano", layout(mixer), n_layers=1, d_ff=32)).double().eval()
    padded = prompt.clone()
    for row, length in enumerate(LENGTHS):
        padded[row, : 12 - length] = -1  # never looked at
    together = torch.stack(list(model.generate(padded, 3, lengths=torch.tensor(LENGTHS))), dim=1)
    logits = torch.stack(seen, dim=1)
    for row, length in enumerate(LENGTHS):
        seen.clear()
        alone = torch.stack(list(model.generate(prompt[row : row + 1, 12 - length :], 3)), dim=1)
        assert torch.equal(together[row], alone[0])
        torch.testing.assert_close(logits[row], torch.stack(seen, dim=1)[0], rtol=1e-9, atol=1e-9)


def test_without_lengths_all_of_the_prompt_is_read(prompt, seen):
    model = LanguageModel(preset_config("nano", "linear_attention")).double()
    plain = torch.stack(list(model.generate(prompt, 3)))
    assert torch.equal(plain, torch.stack(list(model.generate(prompt, 3, lengths=[12] * 4))))
    torch.testing.assert_close(seen[0], model(prompt)[0][:, -1], rtol=1e-9, atol=1e-9)
    next(iter(model.generate(prompt, 1, lengths=LENGTHS)))
    changed = (seen[-1] - seen[0]).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, True, False, True]


def test_bad_lengths_are_refused_at_the_call(prompt):
    model = LanguageModel(preset_config("nano", "linear_attention"))
    for lengths in ([7, 1, 12], [7, 0, 12, 7], [7, 1, 13, 7], [7.0, 1.0, 12.0, 7.0]):
        with pytest.raises(ValueError, match=r"lengths must be \[batch = 4\] whole numbers from 1 to time = 12, got"):
            model.generate(prompt, 3, lengths=lengths)
    with pytest.raises(ValueError, match="token ids must be in"):
        model.generate(torch.full_like(prompt, -1), 3, lengths=LENGTHS)
    shared = LanguageModel(preset_config("nano", "softmax_attention | fwpkm(scope='batch')@0"))
    assert len(list(shared.generate(prompt, 2))) == 2
    with pytest.raises(ValueError, match=r"cannot share the memory of layers\.0\.memory"):
        shared.generate(prompt, 3, lengths=LENGTHS)
