"""TTT-Linear and TTT-MLP as mixers."""

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.ops.ttt import OP

NAMES = ("ttt_linear", "ttt_mlp")


def test_position_scale_starts_as_the_mean_and_never_turns_around():
    mixer = create_mixer("ttt_linear", 32, mini_batch_size=4)
    assert mixer.position_scale().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    with torch.no_grad():
        mixer.position_offset.fill_(-0.4)
    assert mixer.position_scale().tolist() == pytest.approx([0.6, 0.1, 0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_rotations_start_anew_with_every_mini_batch(name):
    """Without a convolution the same tokens are read alike in any mini-batch if the weights do not move."""
    mixer = create_mixer(name, 32, mini_batch_size=4, conv_size=0, inner_learning_rate=1e-12)
    x = torch.randn(1, 4, 32)
    y, _ = mixer(torch.cat([x, x, x], dim=1))
    torch.testing.assert_close(y[:, 8:], y[:, :4])
    shifted, _ = mixer(torch.cat([x[:, :1], x], dim=1))
    assert (shifted[:, 1:4] - y[:, :3]).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_moves_the_weights(name):
    """With steps of almost zero the inner model keeps its initial weights, else it learns."""
    x = torch.randn(2, 32, 32)
    moved = []
    for rate in (1e-12, 1.0):
        mixer = create_mixer(name, 32, inner_learning_rate=rate)
        _, state = mixer(x, return_state=True)
        moved.append((state.fast.weights[-1][0] - mixer.inner_layers()[-1][0]).abs().max().item())
    assert moved[0] < 1e-8
    assert moved[1] > 1e-3


def test_state_size_is_constant():
    mixer = create_mixer("ttt_linear", 32, mini_batch_size=8)
    x = torch.randn(2, 33, 32)
    sizes = [mixer(x[:, :t], None, True)[1].nbytes for t in (1, 7, 8, 9, 33)]
    assert sizes == [2 * 4 * (4 * 2 * (8 * 8 + 8) + 3 * 96)] * 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads must divide d_model 32"),
        ({"heads": 32}, "must be even, got 1; or rope=False"),
        ({"mini_batch_size": 0}, "mini_batch_size must be a whole number of at least 1"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate must be a finite number above 0"),
    ],
)
def test_options_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 32, **options)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_and_learned_reaches_the_op_in_16_bits(name, monkeypatch):
    """Under autocast; what the weights are the sums of stays float32."""
    seen, select = [], OP.select

    def spying(*arguments):
        function = select(*arguments)
        return lambda **given: (seen.append(given), function(**given))[1]

    monkeypatch.setattr(OP, "select", spying)
    with torch.autocast("cpu", torch.bfloat16):
        create_mixer(name, 32)(torch.randn(1, 20, 32))
    (given,) = seen
    assert {given[n].dtype for n in ("queries", "keys", "values")} == {torch.bfloat16}
    assert {given[n].dtype for n in ("step_sizes", "position_scale", "norm_weight")} == {torch.float32}
