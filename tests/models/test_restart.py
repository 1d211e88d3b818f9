"""A model reads a text again: memories stay, everything else starts over."""

import pytest
import torch
from mixerzoo.mixers import MixerState
from mixerzoo.models import LanguageModel, ModelConfig

DEFAULTS = {
    "fwpkm": {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 2, "chunk_size": 8},
    "softmax_attention": {"heads": 2},
    "gated_deltanet": {"heads": 2},
}
LAYOUT = "softmax_attention, gated_deltanet | fwpkm@1 + toy_table@0"


def model(layout=LAYOUT):
    return LanguageModel(ModelConfig(layout, d_model=16, vocab_size=50, mixer_defaults=DEFAULTS)).double()


@pytest.fixture
def tokens():
    return torch.randint(50, (3, 21), generator=torch.Generator().manual_seed(0))


def test_a_restart_keeps_memories_and_nothing_else(tokens):
    net = model()
    _, state = net(tokens, return_state=True)
    again = net.restart(state)
    assert again.position == 0 and again.batch == 3 and state.position == 21
    (none, attention, table), (memory, delta, swiglu) = again.layers
    assert none is attention is table is delta is swiglu is None
    assert memory.position == 0
    assert again.layers[1][0].slots.equal(net.layers[1].memory.finish(state.layers[1][0]).slots)


def test_the_second_reading_differs_from_the_first_by_the_memory_alone(tokens):
    net = model()
    first, state = net(tokens, return_state=True)
    second, after = net(tokens, net.restart(state), return_state=True)
    assert after.position == 21 and not torch.allclose(first, second)
    plain = model("softmax_attention, gated_deltanet | toy_table@0")
    first, state = plain(tokens, return_state=True)
    torch.testing.assert_close(plain(tokens, plain.restart(state))[0], first, rtol=0, atol=0)


def test_rows_stay_apart_and_the_cut_does_not_matter(tokens):
    net = model()
    _, state = net(tokens, return_state=True)
    together, _ = net(tokens, net.restart(state))
    for row in range(3):
        _, alone = net(tokens[row : row + 1], return_state=True)
        logits, _ = net(tokens[row : row + 1], net.restart(alone))
        torch.testing.assert_close(logits[0], together[row], rtol=1e-10, atol=1e-10)
    pieces, state = [], net.restart(state)
    for piece in tokens.split([3, 8, 10], dim=1):
        logits, state = net(piece, state, return_state=True)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), together, rtol=1e-10, atol=1e-10)


def test_a_restarted_state_selects_saves_and_loads(tokens, tmp_path):
    net = model()
    again = net.restart(net(tokens, return_state=True)[1])
    expected = net(tokens, again)[0]
    again.save(tmp_path / "state.safetensors")
    loaded = MixerState.load(tmp_path / "state.safetensors")
    assert torch.equal(net(tokens, loaded)[0], expected)
    torch.testing.assert_close(net(tokens[1:], again.select([1, 2]))[0], expected[1:], rtol=1e-10, atol=1e-10)


def test_states_of_other_models_are_refused(tokens):
    _, state = model("softmax_attention")(tokens, return_state=True)
    with pytest.raises(ValueError, match=r"was made by LanguageModel.*it cannot be continued by"):
        model().restart(state)
    with pytest.raises(ValueError, match="expects a ModelState"):
        model().restart(None)
