"""Multi-head latent attention: the state is what the paper says, and both orders of its products give the same."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers import create_mixer


def test_the_state_holds_one_latent_and_one_rotary_key_per_token():
    mixer = create_mixer("multi_head_latent_attention", 64, heads=4)  # d_head 16
    _, state = mixer(torch.randn(3, 50, 64), return_state=True)
    # DeepSeek-V2, table 1: 9/2 d_head elements per token, whatever the number of heads
    assert state.nbytes == 3 * 50 * (16 * 9 // 2) * 4
    full = create_mixer("softmax_attention", 64, heads=4)(torch.randn(3, 50, 64), return_state=True)[1]
    assert full.nbytes == 3 * 50 * (2 * 4 * 16) * 4


@pytest.mark.parametrize("time", [1, 9, 40])
def test_absorbed_products_give_the_same(time):
    torch.manual_seed(0)
    mixer = create_mixer("multi_head_latent_attention", 32, heads=2, d_value=10).double()
    q = torch.randn(2, time, 2, 16 + 8, dtype=torch.float64)
    seen = torch.randn(2, 40, 64 + 8, dtype=torch.float64)
    torch.testing.assert_close(mixer._absorbed(q, seen), mixer._expanded(q, seen), rtol=0, atol=1e-12)


def test_decoding_absorbs_and_prefill_does_not():
    mixer = create_mixer("multi_head_latent_attention", 512, heads=8)
    assert mixer._absorbs(1, 4096) and not mixer._absorbs(4096, 4096)


def test_an_odd_rotary_key_is_refused():
    with pytest.raises(ValueError, match="d_rope must be even, it is rotated in pairs, got 3"):
        create_mixer("multi_head_latent_attention", 32, d_rope=3)


def test_without_positions_the_order_of_the_past_does_not_matter():
    torch.manual_seed(0)
    mixers = {
        name: create_mixer("multi_head_latent_attention", 32, positions=name).double() for name in ("nope", "rope")
    }
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    shuffled = torch.cat([x[:, torch.randperm(19)], x[:, 19:]], dim=1)
    moved = {name: (mixer(x)[0] - mixer(shuffled)[0])[:, -1].abs().max() for name, mixer in mixers.items()}
    assert moved["nope"] < 1e-12 and moved["rope"] > 1e-4
