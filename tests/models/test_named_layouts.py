"""Layouts by name."""

import pytest
import torch
from mixerzoo.mixers import list_mixers
from mixerzoo.models import (
    LAYOUTS,
    PAPER_LAYOUTS,
    LanguageModel,
    LayoutError,
    ModelConfig,
    parse_layout,
    preset_config,
)


def test_every_layout_of_the_fwpkm_paper_is_there():
    main = {"gdn", "swa_interleave", "fa_interleave", "fa"}
    memories = {"pkm2_6_10", "fwpkm2_6_10", "pkm6-fwpkm2_10", "fwmlp2_6_10"}
    ablations = {"h1k32", "h4k8", "lahd0", "no_addr_loss", "nog", "nowg", "notm"}
    expected = main | {f"{m}-{memory}" for m in main for memory in memories} | {"lact-c512w2048"}
    assert set(PAPER_LAYOUTS) == expected | {f"swa_interleave-pkm6-fwpkm2_10-{name}" for name in ablations}
    assert len(PAPER_LAYOUTS) == 28 and len(set(PAPER_LAYOUTS.values())) == 28
    assert PAPER_LAYOUTS["gdn-pkm6-fwpkm2_10"] == "gated_deltanet | pkm@6 + fwpkm@2,10"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_named_layout_builds_by_its_name(name):
    with torch.device("meta"):
        model = LanguageModel(preset_config("paper-112m", name, n_layers=16 if name == "jamba" else 12))
    assert model.config.layout == LAYOUTS[name].line
    standing = [mixer.card.name for mixer in model.mixers()]
    layout = parse_layout(LAYOUTS[name].line)
    assert set(standing) == {part.mixer.name for part in (*layout.pattern, *layout.insertions)}


def test_ratios_are_the_published_ones():
    def count(name, mixer, n_layers):
        return [layer.mixer.name for layer in parse_layout(name).place(n_layers)].count(mixer)

    assert count("jamba", "softmax_attention", 32) == 4
    assert parse_layout("jamba").place(32)[4].mixer.name == "softmax_attention"  # attn_layer_offset of the release
    assert count("samba", "mamba", 12) == 6
    assert count("griffin", "rg_lru", 12) == 8
    assert count("qwen3_next", "gated_attention", 48) == 12
    assert count("kimi_linear", "kimi_delta_attention", 24) == 18


def test_a_name_is_replaced_by_its_line_where_a_model_is_described():
    config = ModelConfig(" fa ", match="params", match_layout="gdn")
    assert (config.layout, config.match_layout) == ("softmax_attention", "gated_deltanet")
    assert parse_layout("swa_interleave-pkm6-fwpkm2_10-nog") == parse_layout(
        PAPER_LAYOUTS["swa_interleave-pkm6-fwpkm2_10-nog"]
    )


def test_the_name_of_a_mixer_stays_the_mixer(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "toy_sum", LAYOUTS["gdn"])
    assert "toy_sum" in list_mixers()
    assert str(parse_layout("toy_sum")) == "toy_sum"


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("qwen3_nxt", 0, "unknown mixer 'qwen3_nxt'; .*; did you mean the layout qwen3_next"),
        ("  gdn-pkm2_6_1", 2, "unknown layout 'gdn-pkm2_6_1'; did you mean the layout gdn-pkm2_6_10"),
        ("not-there", 0, "unknown layout 'not-there'; `mixerzoo layouts` lists them"),
        ("fa*2", 0, "unknown mixer 'fa'"),  # a name stands for a whole line, not for a part of one
    ],
)
def test_an_unknown_name_gets_a_hint(line, column, message):
    with pytest.raises(LayoutError, match=message) as caught:
        parse_layout(line).place(4)
    assert caught.value.column == column
