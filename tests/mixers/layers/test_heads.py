"""Layers that work head by head, block by block, or on pairs of neighbours, against what torch says more slowly."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers.layers import BlockLinear, HeadNorm, LowRank, token_shift, value_size


@pytest.mark.parametrize("bias", [False, True])
def test_the_norm_of_heads_is_a_group_norm(bias: bool) -> None:
    norm, group = HeadNorm(3, 4, eps=1e-3, bias=bias).double(), torch.nn.GroupNorm(3, 12, eps=1e-3).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in ((norm.weight, group.weight), (norm.bias, group.bias)):
            if ours is not None:
                ours.normal_()
                theirs.copy_(ours.flatten())
    torch.testing.assert_close(norm(x).flatten(0, 1).flatten(1), group(x.flatten(0, 1).flatten(1)))


def test_the_norm_of_heads_keeps_the_dtype_and_refuses_one_feature() -> None:
    assert HeadNorm(2, 4).bfloat16()(torch.randn(1, 2, 4).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"at least 2 features.* got 1"):
        HeadNorm(4, 1)


def test_blocks_are_a_block_diagonal_matrix() -> None:
    blocks = BlockLinear(3, 4).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(blocks(x).flatten(2), x.flatten(2) @ torch.block_diag(*blocks.weight).mT)


def test_low_rank_has_its_rank() -> None:
    layer = LowRank(7, 2, 6, bias=False)
    matrix = layer(torch.eye(7))
    assert torch.linalg.matrix_rank(matrix) == 2 and layer.up.bias is None


def test_the_token_before_each_token() -> None:
    x = torch.randn(2, 5, 3)
    first, last = token_shift(x[:, :2], None)
    second, _ = token_shift(x[:, 2:], last)
    expected = torch.cat([torch.zeros(2, 1, 3), x[:, :-1]], dim=1)
    assert torch.equal(torch.cat([first, second], dim=1), expected)
    assert last.untyped_storage().nbytes() == last.nbytes  # a state must not keep the whole text alive


def test_values_have_a_whole_number_of_features() -> None:
    assert value_size(6, 1.5) == 9
    with pytest.raises(ValueError, match=r"whole number of at least 1, got 1\.5"):
        value_size(3, 0.5)
