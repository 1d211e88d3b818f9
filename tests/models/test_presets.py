import re

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card, mixer_options
from mixerzoo.models import (
    PAPER_LAYOUTS,
    PRESETS,
    LanguageModel,
    LayoutError,
    count_parameters,
    parse_layout,
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


def test_every_layout_of_the_paper_is_there():
    main = {"gdn", "swa_interleave", "fa_interleave", "fa"}
    memories = {"pkm2_6_10", "fwpkm2_6_10", "pkm6-fwpkm2_10", "fwmlp2_6_10"}
    ablations = {"h1k32", "h4k8", "lahd0", "no_addr_loss", "nog", "nowg", "notm"}
    expected = main | {f"{m}-{memory}" for m in main for memory in memories} | {"lact-c512w2048"}
    assert set(PAPER_LAYOUTS) == expected | {f"swa_interleave-pkm6-fwpkm2_10-{name}" for name in ablations}
    assert PAPER_LAYOUTS["gdn-pkm6-fwpkm2_10"] == "gated_deltanet | pkm@6 + fwpkm@2,10"
    assert len(set(PAPER_LAYOUTS.values())) == len(PAPER_LAYOUTS)


@pytest.mark.parametrize("name", sorted(PAPER_LAYOUTS))
def test_layouts_of_the_paper_build_but_for_the_one_with_a_mixer_that_is_unknown(name):
    layout = parse_layout(PAPER_LAYOUTS[name])
    named = [r.mixer.name for r in layout.pattern] + [i.mixer.name for i in layout.insertions]
    unknown = [mixer for mixer in named if mixer not in list_mixers()]
    assert unknown == (["lact"] if name == "lact-c512w2048" else [])
    with torch.device("meta"):
        if unknown:
            with pytest.raises(LayoutError, match=f"unknown mixer '{unknown[0]}'") as caught:
                LanguageModel(preset_config("paper-112m", str(layout)))
            assert re.match(rf"{unknown[0]}\b", str(layout)[caught.value.column :])
        else:
            model = LanguageModel(preset_config("paper-112m", str(layout)))
            assert len(model.layers) == 12


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
