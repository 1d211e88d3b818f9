import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card, mixer_options
from mixerzoo.models import (
    PAPER_LAYOUTS,
    PRESETS,
    LanguageModel,
    count_parameters,
    preset_config,
)


def test_paper_112m_has_the_parameters_of_the_formula(capsys):
    d_model, n_layers, d_ff, vocab, heads, kv_heads, d_head = 768, 12, 2304, 32000, 12, 4, 64
    attention = d_model * d_head * (heads + 2 * kv_heads) + heads * d_head * d_model + 2 * d_head
    swiglu = 3 * d_model * d_ff
    norms = 2 * d_model
    expected = vocab * d_model + n_layers * (attention + swiglu + norms) + d_model
    with torch.device("meta"):
        model = LanguageModel(preset_config("paper-112m", PAPER_LAYOUTS["fa"]))
    counted = sum(p.numel() for p in model.parameters())
    with capsys.disabled():
        print(
            f"\npaper-112m: {counted:,} parameters; {vocab}*{d_model} embedding + {n_layers}*({attention:,} attention"
            f" + {swiglu:,} SwiGLU + {norms:,} norms) + {d_model} = {expected:,}"
        )
    assert all(p.is_meta for p in model.parameters())
    assert counted == expected == 107_172_096


def test_paper_112m_with_gated_deltanet_is_the_papers_112_million():
    total = count_parameters(preset_config("paper-112m", PAPER_LAYOUTS["gdn"]))["total"]
    assert round(total / 1e6) == 112


def test_paper_112m_has_the_released_sizes_of_the_memories():
    with torch.device("meta"):
        slow = LanguageModel(preset_config("paper-112m", PAPER_LAYOUTS["gdn-pkm2_6_10"])).layers[6].feed_forward
        dense = LanguageModel(preset_config("paper-112m", PAPER_LAYOUTS["gdn-fwmlp2_6_10"])).layers[6].memory
    assert (slow.values.shape, slow.keys.shape) == ((512**2, 512), (4, 2, 512, 256))
    assert slow.o_proj.weight.shape == (768, 512) and slow.g_proj.weight.shape == (512, 768)
    assert [tuple(w.shape) for w in dense.initial_weights()] == [
        *[(2304, 512), (2304,)] * 2,
        *[(512, 2304), (512,)],
    ]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_set_only_options_that_the_mixers_have(preset):
    for mixer, options in PRESETS[preset]["mixer_defaults"].items():
        if mixer in list_mixers():
            assert set(options) <= set(mixer_options(mixer)), mixer


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_hosts_every_mixer(preset):
    for mixer in list_mixers():
        layout = mixer if mixer_card(mixer).role == "mixer" else f"toy_sum | {mixer}@0"
        parts = count_parameters(preset_config(preset, layout))
        assert parts["total"] > parts["embedding"]


def test_nano_runs_with_every_mixer():
    tokens = torch.arange(40).reshape(2, 20)
    for mixer in list_mixers():
        layout = mixer if mixer_card(mixer).role == "mixer" else f"toy_sum | {mixer}@0"
        model = LanguageModel(preset_config("nano", layout))
        logits, state = model(tokens, return_state=True)
        assert logits.shape == (2, 20, 512) and logits.isfinite().all(), mixer
        assert state is not None and state.position == 20
