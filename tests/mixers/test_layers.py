import pytest
import torch
from mixerzoo.mixers.layers import RMSNorm, ShortConvolution, apply_rotary, rotary_angles, split_heads
from torch.nn import functional as F


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_short_convolution_is_a_causal_depthwise_convolution(size, activation):
    conv = ShortConvolution(6, size, activation).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    expected = F.conv1d(F.pad(x.mT, (size - 1, 0)), conv.weight[:, None], groups=6).mT
    y, tail = conv(x)
    torch.testing.assert_close(y, F.silu(expected) if activation else expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(tail, x[:, 11 - (size - 1) :], rtol=0, atol=0)


@pytest.mark.parametrize("cuts", [[1] * 11, [2, 9], [7, 3, 1], [10, 1]])
def test_short_convolution_continues_wherever_it_is_cut(cuts):
    conv, x = ShortConvolution(5, 4, "silu"), torch.randn(2, 11, 5)
    whole, last = conv(x)
    parts, tail = [], None
    for part in x.split(cuts, dim=1):
        y, tail = conv(part, tail)
        assert tail.shape == (2, 3, 5)
        assert tail.untyped_storage().nbytes() == tail.numel() * 4
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-6)
    assert torch.equal(tail, last)


def test_short_convolution_leaves_its_tail_alone_and_passes_gradients_through_it():
    conv = ShortConvolution(3, 4).double()
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    tail = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    before = tail.detach().clone()
    assert torch.autograd.gradcheck(
        lambda x, t, w: torch.func.functional_call(conv, {"weight": w}, (x, t)),
        (x, tail, conv.weight.detach().requires_grad_()),
    )
    assert torch.equal(tail, before)


def test_short_convolution_refuses_bad_options():
    with pytest.raises(ValueError, match="size >= 1"):
        ShortConvolution(4, 0)
    with pytest.raises(ValueError, match="'relu'"):
        ShortConvolution(4, 2, "relu")


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 3, 8, dtype=torch.float64)

    def score(query_at, key_at):
        rotated = [
            apply_rotary(x, rotary_angles(at, 1, 8, 10000.0, x.device)) for x, at in ((q, query_at), (k, key_at))
        ]
        return (rotated[0] * rotated[1]).sum(-1)

    torch.testing.assert_close(score(5, 2), score(1_000_005, 1_000_002), rtol=0, atol=1e-9)
    assert (score(5, 2) - score(5, 3)).abs().max() > 1e-3


def test_rotary_is_the_published_rotation():
    x = torch.randn(1, 7, 2, 6, dtype=torch.float64)
    rotated = apply_rotary(x, rotary_angles(3, 7, 6, 500.0, x.device))
    position = torch.arange(3, 10, dtype=torch.float64)[None, :, None]
    for i in range(3):
        turn = torch.polar(torch.ones_like(position), position * 500.0 ** (-2 * i / 6))
        expected = torch.complex(x[..., i], x[..., i + 3]) * turn
        torch.testing.assert_close(torch.complex(rotated[..., i], rotated[..., i + 3]), expected)


def test_rotary_stays_accurate_far_out_in_float32():
    x = torch.randn(1, 4, 1, 8)
    angles = rotary_angles(10_000_000, 4, 8, 10000.0, x.device)
    torch.testing.assert_close(apply_rotary(x, angles), apply_rotary(x.double(), angles).float(), rtol=1e-6, atol=1e-6)


def test_rms_norm_keeps_the_dtype_of_its_input():
    norm, x = RMSNorm(8), torch.randn(3, 8)
    expected = x / x.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(norm(x.bfloat16()).float(), expected, rtol=0.02, atol=0.02)


def test_split_heads_is_a_view():
    x = torch.arange(24.0).reshape(1, 2, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 2, 3, 4)
    assert heads.data_ptr() == x.data_ptr()
    assert torch.equal(heads[0, 1, 2], x[0, 1, 8:])
