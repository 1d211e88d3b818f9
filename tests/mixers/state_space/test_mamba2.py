"""Mamba-2 against transformers' layer, which runs in plain torch here, with copied weights."""

import pytest
import torch
from mixerzoo.mixers import create_mixer


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_the_layer_of_transformers(oracle, groups):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=24, n_groups=groups, chunk_size=8, num_hidden_layers=1
    )
    theirs = Mamba2Mixer(config, 0).eval()
    with torch.no_grad():  # away from where they start, at which some do nothing
        theirs.norm.weight.uniform_(0.5, 1.5)
        theirs.D.uniform_(-1, 1)
    ours = create_mixer("mamba2", 32, d_head=16, d_state=24, groups=groups, chunk_size=16)
    ours.load_state_dict(
        {
            "in_proj.weight": theirs.in_proj.weight,
            "conv.weight": theirs.conv1d.weight.squeeze(1),
            "conv.bias": theirs.conv1d.bias,
            "dt_bias": theirs.dt_bias,
            "A_log": theirs.A_log,
            "D": theirs.D,
            "o_norm.weight": theirs.norm.weight,
            "o_proj.weight": theirs.out_proj.weight,
        }
    )
    x = torch.randn(2, 37, 32)
    y, expected = ours(x)[0], theirs(x)
    oracle("mamba2", "transformers Mamba2Mixer", y, expected, limit=1e-6)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    oracle("mamba2", "transformers Mamba2Mixer", ours.in_proj.weight.grad, theirs.in_proj.weight.grad, limit=1e-5)
    oracle("mamba2", "transformers Mamba2Mixer", ours.A_log.grad, theirs.A_log.grad, limit=1e-5)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"expand \* d_model = 48 is no multiple of d_head = 32"):
        create_mixer("mamba2", 24, d_head=32)
    with pytest.raises(ValueError, match=r"the 4 heads .* are no multiple of groups = 3"):
        create_mixer("mamba2", 32, d_head=16, groups=3)


def test_step_sizes_start_where_the_release_has_them():
    torch.manual_seed(0)
    mixer = create_mixer("mamba2", 512, d_head=4)
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert dt.min() > 9e-4 and dt.max() < 0.101
    assert abs(dt.log().median() - torch.tensor(0.01).log()) < 0.4
    assert mixer.A_log.exp().min() >= 1 and mixer.A_log.exp().max() <= 16
