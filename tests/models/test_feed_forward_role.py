"""A mixer whose role is feed-forward stands in the place of the SwiGLU; a memory stands beside it."""

import pytest
import torch
from mixerzoo.mixers import mixer_class
from mixerzoo.models import LanguageModel, LayoutError, count_parameters, preset_config
from mixerzoo.models.backbone import SwiGLU

LAYOUT = "gated_deltanet | pkm@1 + fwmlp@0,1"


def test_pkm_replaces_the_swiglu_of_its_layer_and_fwmlp_is_inserted():
    first, second = LanguageModel(preset_config("nano", LAYOUT)).layers
    assert isinstance(first.feed_forward, SwiGLU) and isinstance(second.feed_forward, mixer_class("pkm"))
    assert all(isinstance(block.memory, mixer_class("fwmlp")) for block in (first, second))
    plain = LanguageModel(preset_config("nano", "gated_deltanet"))
    assert all(isinstance(block.feed_forward, SwiGLU) and block.memory is None for block in plain.layers)


def test_everything_else_keeps_its_initial_bits():
    plain = dict(LanguageModel(preset_config("nano", "gated_deltanet")).named_parameters())
    own = dict(LanguageModel(preset_config("nano", LAYOUT)).named_parameters())
    gone = {name for name in plain if name.startswith("layers.1.feed_forward.")}
    assert {n.rpartition(".feed_forward.")[2] for n in gone} == {"gate.weight", "up.weight", "down.weight"}
    assert not gone & set(own)
    assert all(torch.equal(own[name], parameter) for name, parameter in plain.items() if name not in gone)


def test_parameters_of_pkm_count_as_a_memory():
    with_pkm, plain = (count_parameters(preset_config("nano", line)) for line in ("toy_sum | pkm@1", "toy_sum"))
    table, queries, keys = 32**2 * 64, 64 * 2 * 64, 2 * 2 * 32 * 32
    assert with_pkm["memories"] == table + queries + keys + 2 * 64  # the last: the norm of the queries
    assert with_pkm["feed_forward"] == plain["feed_forward"] / 2
    assert plain["memories"] == 0


def test_logits_do_not_depend_on_how_a_text_is_cut():
    model = LanguageModel(preset_config("nano", LAYOUT)).double()
    tokens = torch.randint(512, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        state, pieces = None, []
        for piece in tokens.split([1, 62, 3, 70, 14], dim=1):  # the memory rewrites after 64 and 128
            logits, state = model(piece, state, return_state=True)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-9)


def test_a_feed_forward_has_no_place_among_the_mixers():
    with pytest.raises(LayoutError, match=r"pkm is a feed-forward: insert it right of '\|'") as caught:
        LanguageModel(preset_config("nano", "gated_deltanet, pkm"))
    assert caught.value.column == 16
