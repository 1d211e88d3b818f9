"""A memory above other layers can only learn to find again what it can address again."""

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card
from mixerzoo.mixers.memory.fwpkm_inspection import record_fwpkm
from mixerzoo.models import LanguageModel, preset_config

MIXERS = [n for n in list_mixers() if mixer_card(n).role == "mixer" and n not in ("fwpkm", "fwmlp")]

# of mixers that start, as published, by outweighing a token with what came before it: B and C of Mamba-3 are
# near 1, and the others normalise what they read to the scale of the token
LESS_SHARED = {"mamba3": 0.12, "deltanet": 0.25, "log_linear_attention": 0.25, "mesa": 0.2}


def shared(one, other):
    """The share of the slots `one [..., k]` that are among `other [..., k]`, on average."""
    return (one[..., :, None] == other[..., None, :]).any(-1).float().mean().item()


@pytest.mark.parametrize("d_model", [64, 256])
@pytest.mark.parametrize("mixer", MIXERS)
def test_at_first_a_token_finds_its_slots_again_in_another_context(mixer, d_model):
    model = LanguageModel(preset_config("nano", f"{mixer} | fwpkm@1", d_model=d_model))
    rows = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randperm(512, generator=rows)[:64] for _ in range(4)])
    order = torch.randperm(64, generator=rows)
    with record_fwpkm(model) as traces, torch.no_grad():
        model(torch.cat([tokens, tokens[:, order]], dim=1))
    slots = traces["layers.1.memory"].slots.flatten(2)
    written, found = slots[:, order], slots[:, 64:]
    assert shared(written, found) > LESS_SHARED.get(mixer, 0.4)
    assert shared(written.roll(1, 1), found) < 0.1  # not because all tokens use the same ones
