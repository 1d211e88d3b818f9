"""Log-linear attention: with equal weights for all levels its layer is the Mamba-2 of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


def test_with_all_levels_equal_it_is_mamba_2(oracle: Any) -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=2, chunk_size=8, use_conv_bias=False
    )
    theirs = Mamba2Mixer(config, 0).eval()
    with torch.no_grad():
        theirs.norm.weight.uniform_(0.5, 1.5)
        theirs.D.uniform_(-1, 1)
    mixer: Any = create_mixer("log_linear_attention", 32, d_head=16, d_state=8, groups=2, levels=5, chunk_size=16)
    gate, vkq, dt = theirs.in_proj.weight.split([64, 64 + 2 * 16, 4])
    mixer.load_state_dict(
        {
            "vkq_proj.weight": vkq,
            "conv.weight": theirs.conv1d.weight.squeeze(1),
            "decay_proj.weight": dt,
            "level_proj.weight": torch.zeros(4 * 5, 32),
            "level_proj.bias": torch.full((20,), math.log(math.e - 1)),  # softplus of it is 1
            "g_proj.weight": gate,
            "o_norm.weight": theirs.norm.weight,
            "o_proj.weight": theirs.out_proj.weight,
            "dt_bias": theirs.dt_bias,
            "A_log": theirs.A_log,
            "D": theirs.D,
            "L": torch.ones(4, 5),
        }
    )
    x = torch.randn(2, 37, 32)
    oracle("log_linear_attention", "transformers Mamba2Mixer, all levels 1", mixer(x)[0], theirs(x), limit=2e-6)


def test_the_state_holds_a_memory_per_digit_of_the_position() -> None:
    mixer: Any = create_mixer("log_linear_attention", 32, d_head=16, d_state=8, levels=5)
    held = {time: mixer(torch.randn(1, time, 32), return_state=True)[1].memory.shape[1] for time in (1, 3, 4, 8, 100)}
    assert held == {1: 1, 3: 2, 4: 3, 8: 4, 100: 4}


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"expand \* d_model = 64 is no multiple of d_head = 24"):
        create_mixer("log_linear_attention", 32, d_head=24)
    with pytest.raises(ValueError, match=r"the 4 heads .* are no multiple of groups = 3"):
        create_mixer("log_linear_attention", 32, d_head=16, groups=3)
