import dataclasses

import pytest
import torch
from mixerzoo.models import LanguageModel, ModelConfig, count_flops, count_parameters, preset_config

PAIRS = [
    ("toy_sum", "toy_sum(width=40)"),
    ("toy_sum(width=40)", "toy_sum"),
    ("toy_sum", "toy_sum | toy_sum(width=64)@0,1"),
    ("toy_sum | toy_table@1", "toy_sum(width=30)"),
    ("softmax_attention", "gated_deltanet"),
    ("gated_deltanet", "softmax_attention"),
    ("sliding_window_attention", "ttt_linear"),
]


def test_parameters_by_part_are_those_of_a_real_model():
    line = "toy_sum(width=3), toy_sum | toy_sum(width=5)@0 + toy_table(width=7)@1"
    config = ModelConfig(line, vocab_size=50, d_ff=24)
    model = LanguageModel(config)

    def size(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    first, second = model.layers
    assert count_parameters(config) == {
        "total": size(model),
        "embedding": 50 * 64,
        "mixers": size(first.mixer, second.mixer),
        "memories": size(first.memory, second.feed_forward),
        "feed_forward": 3 * 64 * 24,
        "norms": 64 * (3 + 2 + 1),
    }
    parts = count_parameters(config)
    assert parts.pop("total") == sum(parts.values())


def test_counting_allocates_nothing():
    parts = count_parameters(ModelConfig("toy_sum", d_model=2**16, vocab_size=2**20, n_layers=100))
    assert parts["embedding"] == 2**36


@pytest.mark.parametrize(("time", "kv_heads"), [(1, 4), (48, 4), (300, 2)])
def test_flops_of_attention_equal_the_formula(time, kv_heads):
    d, n_layers, d_ff, vocab = 64, 2, 100, 300
    layout = f"softmax_attention(heads=4, kv_heads={kv_heads})"
    config = preset_config("nano", layout, d_ff=d_ff, vocab_size=vocab)
    projections, swiglu, scores_and_sum = (2 + 2 * kv_heads / 4) * d * d, 3 * d * d_ff, 2 * time * d
    assert count_flops(config, time) == 2 * time * (vocab * d + n_layers * (projections + swiglu + scores_and_sum))


def test_flops_need_a_time():
    with pytest.raises(ValueError, match="time must be at least 1, got 0"):
        count_flops(ModelConfig("toy_sum"), 0)


@pytest.mark.parametrize(("layout", "other"), PAIRS)
def test_matched_parameters_are_within_one_percent(layout, other):
    config = preset_config("nano", layout, match="params", match_layout=other)
    target = count_parameters(dataclasses.replace(config, layout=other, match=None, match_layout=None))["total"]
    model = LanguageModel(config)
    total = sum(p.numel() for p in model.parameters())
    assert abs(total - target) <= 0.01 * target
    assert count_parameters(config)["total"] == total
    unmatched = count_parameters(dataclasses.replace(config, match=None, match_layout=None))["total"]
    # the pair is a real test: without matching it is farther apart than 1 %
    assert abs(unmatched - target) > 0.01 * target and model.d_ff != config.base_d_ff


@pytest.mark.parametrize(("layout", "other"), PAIRS)
def test_matched_flops_are_within_one_percent(layout, other):
    config = preset_config("nano", layout, match="flops", match_layout=other, match_time=96)
    target = count_flops(dataclasses.replace(config, layout=other, match=None, match_layout=None), 96)
    assert abs(count_flops(config, 96) - target) <= 0.01 * target
    swiglu = [block.feed_forward for block in LanguageModel(config).layers if hasattr(block.feed_forward, "gate")]
    assert all(module.gate.out_features == LanguageModel(config).d_ff for module in swiglu)


def test_matching_a_layout_with_itself_changes_nothing():
    for match in ("params", "flops"):
        config = ModelConfig("toy_sum", d_ff=52, match=match, match_layout="toy_sum", match_time=8)
        assert abs(LanguageModel(config).d_ff - 52) <= 4


def test_matched_widths_are_multiples_of_eight_where_that_is_near_enough():
    config = ModelConfig("toy_sum", d_model=256, match="params", match_layout="toy_sum(width=300)")
    assert LanguageModel(config).d_ff % 8 == 0


def test_what_cannot_be_matched_is_refused_with_the_numbers():
    config = ModelConfig("toy_sum(width=2000)", match="params", match_layout="toy_sum")
    with pytest.raises(ValueError, match=r"has [\d,]+ parameters .* no width of at least 8 .*1% \(it would take -"):
        LanguageModel(config)
    # with every feed-forward replaced there is no width to choose
    config = ModelConfig("toy_sum | toy_table@0,1", match="params", match_layout="toy_sum")
    with pytest.raises(ValueError, match="no width"):
        LanguageModel(config)


def test_matching_works_on_the_meta_device():
    config = ModelConfig("toy_sum", match="flops", match_layout="toy_sum(width=40)", match_time=32)
    with torch.device("meta"):
        model = LanguageModel(config)
    assert model.embedding.weight.is_meta and model.d_ff == LanguageModel(config).d_ff
