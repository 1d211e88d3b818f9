"""Long texts are read in pieces that carry the state: the same features, in memory that does not grow."""

import pytest
import torch
from mixerzoo.benchmarks.measures.meter import measure_memory
from mixerzoo.mixers import list_mixers, mixer_card
from mixerzoo.models import LanguageModel, ModelConfig

OPTIONS = {
    "softmax_attention": {"heads": 1},
    "sliding_window_attention": {"heads": 2, "window": 32},
    "linear_attention": {"heads": 2},
    "gated_deltanet": {"heads": 2},
    "gated_attention": {"heads": 2},
    "ttt_linear": {"heads": 2, "mini_batch_size": 64},
    "fwpkm": {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 2, "chunk_size": 256},
    "fwmlp": {"d_k": 8, "d_v": 8, "d_hidden": 16, "chunk_size": 256},
    "pkm": {"n_subkeys": 8, "d_k": 8, "top_k": 2, "heads": 2},
}
MIXERS = list_mixers()


def build(name):
    """A mixer in its usual place: by itself, or beside a window as a memory or in place of a feed-forward."""
    card = mixer_card(name)
    alone = card.role == "mixer" and card.name not in ("fwpkm", "fwmlp")
    layout = name if alone else f"sliding_window_attention | {name}@0"
    return LanguageModel(ModelConfig(layout, d_model=16, n_layers=1, vocab_size=50, mixer_defaults=OPTIONS)).eval()


def text(batch, time):
    return torch.randint(50, (batch, time), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
def test_pieces_give_what_one_call_gives(name):
    model, tokens = build(name).double(), text(1, 16_384)
    whole, expected = model.features(tokens, return_state=True)
    following = model(tokens[:, :5], expected)[0]
    for chunk_size in (8192, 1021):
        features, state = model.read(tokens, chunk_size=chunk_size, scored=torch.ones_like(tokens, dtype=torch.bool))
        assert (features - whole[0]).norm() < 1e-9 * whole.norm()
        assert state.position == 16_384
        torch.testing.assert_close(model(tokens[:, :5], state)[0], following, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in MIXERS if mixer_card(n).state_growth != "linear"])
def test_a_bounded_state_reads_any_length_in_the_same_memory(name):
    model = build(name)

    def peak(time):
        tokens = text(1, time)
        return measure_memory(lambda: model.read(tokens, chunk_size=2048), torch.device("cpu")).peak_bytes

    assert peak(65_536) <= 1.1 * peak(16_384)


def test_attention_over_everything_reads_in_the_memory_of_its_keys():
    model, excess = build("softmax_attention"), []
    for time in (2048, 8192):
        reading = measure_memory(lambda time=time: model.read(text(1, time), chunk_size=512), torch.device("cpu"))
        excess.append(reading.peak_bytes - 2.5 * reading.held_bytes)
    # buffers that grow are copied, but there is no mask of 512 * 8,192 elements, nor scores
    assert excess[1] <= max(excess[0], 0) + 512 * 8192 / 4


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
def test_features_come_in_the_order_of_the_mask(chunk_size):
    model, tokens = build("gated_deltanet").double(), text(3, 19)
    scored = torch.rand(3, 19, generator=torch.Generator().manual_seed(1)) < 0.3
    scored[1] = False  # a sequence without any
    whole, expected = model.features(tokens, return_state=True)
    features, state = model.read(tokens, chunk_size=chunk_size, scored=scored)
    torch.testing.assert_close(features, whole[scored], rtol=1e-10, atol=1e-10)
    last, _ = model.read(tokens, chunk_size=chunk_size)
    torch.testing.assert_close(last, whole[:, -1], rtol=1e-10, atol=1e-10)
    nothing, _ = model.read(tokens, scored=torch.zeros_like(scored))
    assert nothing.shape == (0, 16) and not features.requires_grad
    torch.testing.assert_close(model.read(tokens, state)[0], model.features(tokens, expected)[0][:, -1])


def test_reading_goes_on_from_a_state():
    model, tokens = build("fwpkm").double(), text(2, 300)
    whole, _ = model.read(tokens)
    _, state = model.read(tokens[:, :130], chunk_size=50)
    assert state.position == 130
    for chunk_size in (33, 1000):
        last, after = model.read(tokens[:, 130:], state, chunk_size=chunk_size)
        torch.testing.assert_close(last, whole, rtol=1e-10, atol=1e-10)
        assert after.position == 300


def test_a_model_elsewhere_reads_tokens_piece_by_piece():
    with torch.device("meta"):  # the one other device that every machine has
        model = LanguageModel(ModelConfig("softmax_attention", d_model=16, vocab_size=50))
    features, state = model.read(text(2, 40), chunk_size=16)
    assert features.shape == (2, 16) and features.device.type == "meta" and state.position == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"scored": torch.ones(2, 8)}, r"scored must be bool .*\[2, 9\], got torch.float32 \[2, 8\]"),
        ({"scored": torch.ones(2, 9)}, "scored must be bool"),
        ({"state": "other model"}, "cannot be continued by"),
        ({"state": "other batch"}, "holds 1 sequences but tokens has 2"),
        ({"tokens": torch.full((2, 9), 50)}, r"in 0\.\.49"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_work(arguments, message):
    model, tokens = build("gated_deltanet"), text(2, 9)
    states = {
        "other model": lambda: build("linear_attention").read(tokens)[1],
        "other batch": lambda: model.read(tokens[:1])[1],
    }
    if "state" in arguments:
        arguments = {"state": states[arguments["state"]]()}
    model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        model.read(**{"tokens": tokens, **arguments})
