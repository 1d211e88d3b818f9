"""Everything around the mixer is identical whatever the mixer."""

import pytest
import torch
from mixerzoo.mixers import Mixer, list_mixers, mixer_card
from mixerzoo.models import LanguageModel, preset_config
from torch import nn


def backbone_parameters(model):
    """Name -> parameter of what no mixer owns; memories come with a norm of their own."""
    inside = {id(p) for module in model.modules() if isinstance(module, Mixer) for p in module.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and ".memory_norm." not in name
    }


def build(layout, **changes):
    return LanguageModel(preset_config("nano", layout, **changes))


def assert_same_bits(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].shape == theirs[name].shape, name
        assert torch.equal(ours[name], theirs[name]), name


def test_the_backbone_is_the_same_whatever_the_mixer():
    expected = backbone_parameters(build("toy_sum"))
    names = [name for name in list_mixers() if mixer_card(name).role == "mixer"]
    assert {"toy_sum", "toy_double"} <= set(names)
    for name in names:
        assert_same_bits(expected, backbone_parameters(build(name)))
        assert_same_bits(expected, backbone_parameters(build(f"toy_sum | {name}@1")))


def test_the_backbone_has_the_parts_it_should_have():
    layer = ["mixer_norm.weight", "feed_forward_norm.weight"]
    layer += [f"feed_forward.{part}.weight" for part in ("gate", "up", "down")]
    expected = ["embedding.weight", *(f"layers.{i}.{name}" for i in (0, 1) for name in layer), "norm.weight"]
    assert list(backbone_parameters(build("toy_sum"))) == expected


def test_options_of_a_mixer_change_neither_the_backbone_nor_other_mixers():
    one, other = build("toy_sum(width=3), toy_sum"), build("toy_sum(width=30), toy_sum")
    assert_same_bits(backbone_parameters(one), backbone_parameters(other))
    assert_same_bits(dict(one.layers[1].mixer.named_parameters()), dict(other.layers[1].mixer.named_parameters()))
    with_table = backbone_parameters(build("toy_sum | toy_table@0"))
    expected = {k: p for k, p in backbone_parameters(one).items() if not k.startswith("layers.0.feed_forward.")}
    assert_same_bits(expected, with_table)


def test_the_random_state_of_the_caller_neither_matters_nor_changes():
    torch.manual_seed(1)
    first = build("toy_sum")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build("toy_sum")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_bits(dict(first.named_parameters()), dict(second.named_parameters()))


@pytest.mark.parametrize("seed", [1, -1, 2**63 - 1])
def test_seeds_change_every_matrix(seed):
    expected = backbone_parameters(build("toy_sum"))
    for name, parameter in backbone_parameters(build("toy_sum", seed=seed)).items():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, expected[name]), name


def test_no_two_modules_draw_the_same_values():
    model = build("toy_sum")
    first, second = (block.feed_forward for block in model.layers)
    for part in ("gate", "up", "down"):
        assert not torch.equal(getattr(first, part).weight, getattr(second, part).weight)
    assert not torch.equal(first.gate.weight, first.up.weight)
    assert not torch.equal(model.layers[0].mixer.down.weight, model.layers[1].mixer.down.weight)


def test_initial_scales():
    model = build("toy_sum")
    block = model.layers[0].feed_forward
    assert model.embedding.weight.std().item() == pytest.approx(model.config.d_model**-0.5, rel=0.05)
    assert block.gate.weight.std().item() == pytest.approx(model.config.d_model**-0.5, rel=0.05)
    assert block.down.weight.std().item() == pytest.approx(model.d_ff**-0.5 / 2, rel=0.05)
    norms = [m for name, m in model.named_modules() if isinstance(m, nn.RMSNorm)]
    assert len(norms) == 5 and all((norm.weight == 1).all() for norm in norms)


def test_tokens_enter_the_residual_stream_at_unit_scale():
    model, entered = build("toy_sum"), []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(torch.arange(512)[None])
    assert entered[0].std().item() == pytest.approx(1, rel=0.05)
