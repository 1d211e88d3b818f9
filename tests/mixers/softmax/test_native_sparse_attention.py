"""Native sparse attention: its branches against flash-linear-attention's naive functions, ops against references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.ops.block_attention import block_attention
from mixerzoo.mixers.ops.compressed_attention import Blocks, compressed_attention


def test_the_branches_of_fla(oracle: Any) -> None:
    """Where compressed blocks are the blocks to select and neither overlap, as there."""
    from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk

    torch.manual_seed(0)
    q, (k, v) = torch.randn(2, 90, 8, 8), (torch.randn(2, 90, 2, 8) for _ in range(2))
    compressed = [x[:, :88].unflatten(1, (-1, 8)).mean(2) for x in (k, v)]
    coarse, _ = naive_nsa_compression(q, *compressed, block_size=8, scale=8**-0.5)
    chosen = naive_nsa_topk(q, compressed[0], block_counts=5, block_size=8, scale=8**-0.5)
    chosen[:, 88:, :, -1] = 11  # theirs never offers a block that is not complete, not even a token's own
    y, selected = compressed_attention(q, *compressed, blocks=Blocks(8, 8, 8, 5), position=0)
    oracle("native_sparse_attention", "fla-core naive_nsa_compression", y, coarse)
    assert torch.equal(selected[:, :88].sort(-1).values, chosen[:, :88].sort(-1).values)
    close = naive_nsa_selection(q, k, v, selected, block_size=8)
    y = block_attention(q, k, v, selected, block_size=8)
    oracle("native_sparse_attention", "fla-core naive_nsa_selection", y, close)


@pytest.mark.parametrize(
    ("time", "position", "heads", "kv_heads", "blocks"),
    [
        (53, 0, 4, 2, Blocks(8, 4, 16, 3)),
        (20, 33, 4, 1, Blocks(4, 4, 4, 5)),
        (1, 30, 2, 2, Blocks(8, 2, 8, 4)),
        (20, 0, 2, 1, Blocks(5, 5, 15, 3)),
        (70, 0, 2, 2, Blocks(10, 5, 10, 4)),
    ],
)
def test_selection_and_both_attentions_are_their_definitions(
    time: int, position: int, heads: int, kv_heads: int, blocks: Blocks
) -> None:
    torch.manual_seed(0)
    total, n = position + time, blocks.complete(position + time)
    sizes = ((time, heads), (n, kv_heads), (n, kv_heads), (total, kv_heads), (total, kv_heads))
    inputs = [torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True) for size in sizes]
    found = []
    for backend in ("reference", "blockwise"):
        q, k_coarse, v_coarse, k, v = inputs
        coarse, chosen = compressed_attention(q, k_coarse, v_coarse, blocks=blocks, position=position, backend=backend)
        close = block_attention(q, k, v, chosen, block_size=blocks.block_size, backend=backend)
        gradients = torch.autograd.grad((coarse * close).sum(), inputs)
        found.append((coarse, close, chosen.sort(-1).values, *gradients))
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)
    with torch.no_grad():  # another kernel where there are no gradients
        y = block_attention(q, k, v, chosen, block_size=blocks.block_size)
    torch.testing.assert_close(y, found[0][1], atol=1e-9, rtol=1e-9)


def test_the_first_block_and_two_local_ones_are_always_read() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 64, 2, 8), torch.randn(1, 15, 2, 8)
    _, chosen = compressed_attention(q, k, k, blocks=Blocks(8, 4, 8, 4), position=0)
    own = torch.arange(64)[:, None] // 8
    for always in (torch.zeros_like(own), own, (own - 1).clamp(min=0)):
        assert (chosen == always[None, :, None]).any(dim=-1).all()
    assert (chosen <= own[None, :, None]).all()


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="stride = 3 must divide size = 8 and block_size = 16"):
        Blocks(8, 3, 16, 4)
    with pytest.raises(ValueError, match="count must be at least 3"):
        Blocks(8, 4, 16, 2)
    with pytest.raises(ValueError, match="size=32, stride=16, block_size=16"):
        create_mixer("native_sparse_attention", 32, heads=2, block_size=16)
    q, k = torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match=r"blocks must be integers \[batch = 1, time = 4"):
        block_attention(q, k, k, torch.zeros(1, 3, 2, 1, dtype=torch.long), block_size=2)
