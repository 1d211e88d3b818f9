"""The controls mix no more than they say."""

from __future__ import annotations

from typing import Any

import torch
from mixerzoo.mixers import create_mixer


def seen(name: str, **options: int) -> list[int]:
    """How far back the tokens lie that the last of 20 sees."""
    torch.manual_seed(0)
    mixer, x = create_mixer(name, 16, **options), torch.randn(1, 20, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[0][:, -1].square().sum(), x)
    return sorted(19 - int(t) for t in gradient[0].abs().sum(-1).nonzero())


def test_each_sees_as_far_as_it_says() -> None:
    assert seen("identity") == [0]
    assert seen("short_convolution") == [0, 1, 2, 3]
    assert seen("short_convolution", conv_size=6, expand=2) == [0, 1, 2, 3, 4, 5]


def test_the_short_convolution_is_that_of_torch(oracle: Any) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("short_convolution", 16, conv_size=3)
    x = torch.randn(2, 9, 16)
    inside = torch.nn.functional.pad(mixer.in_proj(x).mT, (2, 0))
    y = torch.nn.functional.conv1d(inside, mixer.conv.weight.unsqueeze(1), groups=16).mT
    expected = mixer.o_proj(torch.nn.functional.silu(y))
    oracle("short_convolution", "torch conv1d", mixer(x)[0], expected)
