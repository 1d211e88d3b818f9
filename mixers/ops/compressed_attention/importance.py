"""From the attention that compressed blocks get to the blocks that are read in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Blocks:
    """Sizes in tokens: `size` tokens are compressed every `stride` tokens; of the blocks of `block_size` tokens `count`
    are selected: the first one, the token's own and the one before it, and those of most importance.

    Raises `ValueError` unless stride divides both size and block_size, and size is at most block_size.
    """

    size: int
    stride: int
    block_size: int
    count: int

    def __post_init__(self) -> None:
        if min(self.size, self.stride, self.block_size) < 1 or self.size > self.block_size:
            raise ValueError(
                f"sizes must be at least 1, and a compressed one at most block_size, got size={self.size}, "
                f"stride={self.stride}, block_size={self.block_size}"
            )
        if self.size % self.stride or self.block_size % self.stride:
            raise ValueError(
                f"stride = {self.stride} must divide size = {self.size} and block_size = {self.block_size}"
            )
        if self.count < 3:
            raise ValueError(f"count must be at least 3 (the first block and two local ones), got {self.count}")

    def complete(self, length: int) -> int:
        """How many compressed tokens `length` tokens make."""
        return max(0, (length - self.size) // self.stride + 1)


def visible(blocks: Blocks, positions: Tensor, n: int) -> Tensor:
    """Which of `n` compressed tokens the tokens at `positions [time]` see, bool `[time, n]`."""
    last = torch.arange(n, device=positions.device) * blocks.stride + blocks.size - 1
    return last <= positions[:, None]


def importance(weights: Tensor, blocks: Blocks) -> Tensor:
    """What attention `weights [..., n]` to compressed tokens say of blocks, `[..., blocks]`.

    A weight counts for a block once for each stride of tokens that the two have in common.
    """
    if not weights.shape[-1]:
        return weights
    spread, strides = blocks.size // blocks.stride, blocks.block_size // blocks.stride
    fill = -(weights.shape[-1] + spread - 1) % strides  # up to whole blocks
    sums = F.pad(weights, (spread - 1, spread - 1 + fill)).unfold(-1, spread, 1).sum(-1)  # of those that cover a stride
    return sums.unflatten(-1, (-1, strides)).sum(-1)


def select(scores: Tensor, blocks: Blocks, positions: Tensor, end: int) -> Tensor:
    """The blocks to read, `[..., time, at most count]`, from `scores [..., time, any number of blocks]`.

    end: the last of the positions, plus 1.
    """
    own = positions[:, None] // blocks.block_size
    n_blocks = -(-end // blocks.block_size)
    scores = F.pad(scores, (0, max(0, n_blocks - scores.shape[-1])))[..., :n_blocks]
    block = torch.arange(n_blocks, device=scores.device)
    always = (block == 0) | (block == own) | (block == own - 1)
    scores = scores.masked_fill(always, float("inf")).masked_fill(block > own, float("-inf"))
    values, found = scores.topk(min(blocks.count, n_blocks), dim=-1)
    return found.masked_fill(values == float("-inf"), -1)
